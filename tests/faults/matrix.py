"""The faults of servers and networks, as data."""

from __future__ import annotations

import time
from itertools import repeat

from tests.faults.scene import Fault, Scene


def kill(scene: Scene) -> None:
    """SIGKILL; three seconds later the server is started on its port again."""
    scene.server.kill()
    time.sleep(3.0)
    scene.server.start()


def restart(scene: Scene) -> None:
    """SIGKILL, and at once started on the same port again; and all of that again."""
    for _ in repeat(None, 2):
        scene.server.kill()
        scene.server.start()
        time.sleep(1.0)


def terminate(scene: Scene) -> None:
    """Asked to stop as containers are, and started again as soon as it has ended."""
    scene.server.terminate()
    scene.server.start()


def freeze(scene: Scene) -> None:
    """SIGSTOP for 20 s: everything accepts (the kernel does) and nothing answers.

    Milvus 2.3.5 sometimes ends itself after it, its lease of etcd having expired; then it is
    started again, as a supervisor would.
    """
    scene.server.pause()
    time.sleep(20.0)
    scene.server.resume()
    until = time.monotonic() + (15.0 if scene.server.indexed else 0.0)
    while time.monotonic() < until:
        scene.server.ensure()
        time.sleep(0.2)


SERVER_FAULTS = (
    Fault("SIGKILL, back after 3 s", kill, reloads=True),
    Fault("SIGSTOP for 20 s", freeze, breaks=None, unwell=True),
    Fault("graceful stop, then started", terminate, unwell=True),
)
#: A restart costs Milvus the better part of a minute; one of them is enough.
QUICK_SERVER_FAULTS = (Fault("restarted twice at once", restart),)


def refuse(scene: Scene) -> None:
    """Every connection is reset, and new ones are refused for five seconds."""
    scene.proxy.set_mode("refuse", cut=True)
    time.sleep(5.0)
    scene.proxy.set_mode("pass")


def hang(scene: Scene) -> None:
    """Every connection is reset; new ones are accepted and get no answer for 12 seconds.

    Longer than one attempt to connect may take (`connect_timeout`).
    """
    scene.proxy.set_mode("hang", cut=True)
    time.sleep(12.0)
    scene.proxy.set_mode("pass", cut=True)


def tear(scene: Scene) -> None:
    """Five times the next answer on each connection is cut in half by a reset."""
    for _ in repeat(None, 5):
        scene.proxy.tear()
        time.sleep(1.0)


def delay(scene: Scene) -> None:
    """Everything is 200 ms late, there and back, for six seconds."""
    scene.proxy.delay = 0.2
    scene.proxy.set_mode("latency")
    time.sleep(6.0)
    scene.proxy.set_mode("pass")


def drip(scene: Scene) -> None:
    """One byte a second for eight seconds, on the connections that there are and on new ones."""
    scene.proxy.delay = 1.0
    scene.proxy.set_mode("drip")
    time.sleep(8.0)
    scene.proxy.set_mode("pass")


def forget_after_sleep(scene: Scene) -> None:
    """While the clients sleep, the network forgets their connections without telling them."""
    scene.load.pause()
    scene.proxy.forget()
    time.sleep(3.0)
    scene.load.resume()


def forget_under_load(scene: Scene) -> None:
    """The network forgets connections in the middle of calls, without telling the clients."""
    scene.proxy.forget()


NETWORK_FAULTS = (
    Fault("refused for 5 s", refuse),
    Fault("accepted and unanswered, 12 s", hang),
    Fault("reset in mid-answer, 5 times", tear),
    Fault("200 ms latency for 6 s", delay, breaks=False),
    Fault("one byte a second, 8 s", drip, breaks=None),
    Fault("half-open after sleep", forget_after_sleep, idle_threshold=2.0),
    Fault("half-open under load", forget_under_load),
)
