"""Faults: kills, full disks, I/O errors, power cuts and races at every call that touches a run folder.

    suite.py      the command line: shares the cases out over the cores, prints failures, counts
    scenarios.py  a folder before, a command, the command that recovers, the bytes of the end
    sweeps.py     kill, double kill, full disk, I/O error, race: scenario → cases
    powercut.py   recorded calls → the states that a power cut may leave → cases
    checks.py     what must hold at the crash, after a refusal, after the recovery
    mutants.py    the protocol broken on purpose: each must be caught
    bench.py      forks a child for each command, in 0.03 s
    shim.py       stands between the child and the file system, and makes the fault happen
    report.py     docs/faults.md

A case, from above: `sweeps.kill` resets the world to the scenario's template, has the bench run the
command with a Fault, sees that it was killed there, looks at data/ (`check_at_rest`), runs the recovery
and compares every byte, twice (`check_recovery`).

A new step in the commit protocol is swept without further ado, as points are found by running it. A new
command or flag that changes the folder wants a Scenario; a step that protects something wants a Mutant
that leaves it out.

kills.py kills from outside, at random moments, what is several processes: devices, parts, machines whose
locks hold nobody back (runs.py starts outside.py for them, witness.py looks at what stands). soak.py and
test_real_model.py do so with a real model in one process.
"""
