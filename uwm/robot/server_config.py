"""Where a policy server listens, and what it allows."""

import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens and what it allows.

    `host`, `port` (0: any free one); `token`: what clients must show; `certificate`, `key`: PEM files for TLS. Beyond
    loopback all three are required. `sessions`: memories at once; `idle_s`: how long one is kept without a request;
    `requests_hz`: per session, more than that waits; `message_bytes`: largest frame; `deadline_s`: an answer that took
    longer is marked stale; `drain_s`: how long running requests may take after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    certificate: str | None = None
    key: str | None = None
    sessions: int = 128
    idle_s: float = 600.0
    requests_hz: float = 200.0
    message_bytes: int = 16 * 2**20
    deadline_s: float = 0.5
    drain_s: float = 10.0

    def __post_init__(self):
        for name in ("sessions", "idle_s", "requests_hz", "message_bytes", "deadline_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("TLS needs both certificate and key, the paths of two PEM files")
        if not is_loopback(self.host) and not (self.token and self.certificate):
            lacking = " and ".join(["a token"] * (not self.token) + ["TLS (certificate and key)"] * (not self.certificate))
            raise ValueError(f"host {self.host} can be reached by others, which needs {lacking}; 127.0.0.1 needs neither")
        if self.token and len(self.token) < 16:
            raise ValueError(f"a token has at least 16 characters, got {len(self.token)}: make a random one")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
