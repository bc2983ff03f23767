"""A nightly task that Airflow tries again: each attempt goes on where the last one ended.

A clean stop (75: a deadline, a full disk, another run at work) and a lost device are worth another attempt.
Wrong settings (2), missing input (66), another job's folder (73) and more row errors than --max-errors (65)
are not: they fail at once.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.exceptions import AirflowFailException
from airflow.sdk import dag, task


@dag(schedule="@daily", start_date=datetime(2026, 1, 1), catchup=False)
def sentiment() -> None:
    @task(retries=8, retry_delay=timedelta(minutes=5))
    def answer(day: str) -> None:
        done = subprocess.run(
            ["batchinfer", "run", "--config", "/srv/job/sentiment.yaml", "--output", f"/srv/out/{day}",
             "--resume", "--deadline", "3h", "--no-progress"],
        )  # fmt: skip
        if done.returncode in (2, 65, 66, 73):
            raise AirflowFailException(f"batchinfer: exit code {done.returncode}")
        done.check_returncode()

    answer("{{ ds }}")


sentiment()
