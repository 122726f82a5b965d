"""Messages between ranks of one host: through memory that both map, without a copy in the kernel or a thread.

A channel is one bounded ring in anonymous memory, written by one process and read by one:

    sender                         memory of both                          receiver
    copy in, sem_post(ready)  →    | frame k | frame k+1 |  free  |   →    sem_wait(ready), copy out
    sem_trywait(room)         ←                                       ←    sem_post(room)

Why this is right on every processor: the two ends share nothing but two POSIX semaphores and what lies between them.
The k-th frame is read after the k-th wait on `ready` has succeeded and overwritten after a wait on `room` has taken
the post behind its reading; a post and the wait that takes it synchronise memory (POSIX.1, Base Definitions, section
4.12). Places and lengths are not exchanged: both ends count alike. No lock is ever held, so a process may be killed at
any instruction.

Why nothing is left behind: the memory has no name. It comes from memfd_create, and its descriptor is handed over a
connection whose address, in Linux's abstract namespace, is no file either. When both processes are gone, so is it. The
size limit of /dev/shm does not apply.

A process that waits asks again and again at first, for as long as a bubble lasts: a core that was let go computes
several per cent slower for milliseconds after. It gives way to whoever else wants the core, and where somebody did it
sleeps in the kernel at once, as it does after 50 ms. The connection stays open: when its other end closes, the other
process has gone or left.
"""

from penstock.runtime.transport.shared_memory.host_lanes import HostLanes
from penstock.runtime.transport.shared_memory.lanes import Patience

__all__ = ["HostLanes", "Patience"]
