"""Whether a process has ended. Where no init fetches their exit status, orphans that have ended stay as zombies."""

import psutil


def still_works(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
