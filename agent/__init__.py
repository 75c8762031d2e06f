"""The agent: propose an edit of one kernel file, have pytest judge it, keep or revert.

It reaches the judge only as pytest in a process of its own, through its JSON report.
"""
