"""A process that is killed in the middle of writing, for tests of what it leaves behind."""

import os
import signal


def killed_at_write(number, action, *arguments):
    """Run `action` in a forked child that does half of its write `number` and is killed; False if it came to its end."""
    child = os.fork()
    if not child:
        try:
            _die_at(number)
            action(*arguments)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _die_at(number):
    calls, real = 0, os.pwrite

    def fatal(descriptor, data, offset):
        nonlocal calls
        calls += 1
        if calls == number:
            real(descriptor, bytes(data)[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(descriptor, data, offset)

    os.pwrite = fatal
