"""What each step does: one program a DVC stage, `python -m stages.NAME`."""
