"""What pyproject.toml depends on, a line each: python requirements.py [EXTRA,EXTRA…]"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
wanted = list(project["dependencies"])
for extra in filter(None, "".join(sys.argv[1:]).split(",")):
    wanted += project["optional-dependencies"][extra]
print("\n".join(wanted))
