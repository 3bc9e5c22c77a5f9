"""A sandbox for code that nobody has read: a reply's program is run against tests, and only their outcomes come out.

Three processes take part in a verdict, each a plain Python without this project, torch or any installed package:

    keeper   trusted; starts the two others, reads the verdict, ends everything that is left, and says so (`keeper`)
    judge    runs the tests, in a cage of its own: tests come with data, and data with strangers (`judge`)
    reply    runs the reply's code, in another cage (`reply`)

The code never shares an interpreter with the tests. Where a test calls the reply's function, the arguments go to the
other cage as plain data and the value comes back as plain data (`wire`); it is compared over here. So a reply cannot
find the tests in a frame, print or return a success, end the interpreter before the verdict, patch `assert`, or bring a
value whose `__eq__` is always true: whatever it does, it only answers "what is f(3)?".

A cage (`cage`), where the kernel allows it:
    user, mount, pid, network, ipc, uts namespaces    nothing of the machine's processes, no network, not even loopback
    a root of its own, read-only                      Python's library and the system's; no /home, /proc, /sys, /etc, shell
    /tmp in memory, bounded, empty                    the only place to write; gone with the cage
    another user, no capabilities, no new privileges  of nobody else's number where it is started by root
    Landlock beside that, and instead where there are no namespaces: files, TCP, signals
    limits of CPU time, memory, file size, processes, open files; no core dumps; an empty environment; all descriptors closed
    a limit of wall-clock time; then everything is killed, daemons too, before the verdict is told

What it does not cover:
    a fault of the kernel itself: system calls are not filtered. For code of an adversary use a virtual machine around it.
    memory in total: the limit is of a process, so `processes` times `memory_mib` can be held (and /tmp beside them).
    timing: a reply can see how fast the machine is, and use its share of CPU until its limit.
    tests that prove little: a function that is right on the tests is right here; what a test asks of objects of the
    reply's own classes (`assert f(3)`, `obj.ok()`) is answered by the reply.
    without namespaces (`isolation: best`): UDP, and programs and files that everybody may read where there is no Landlock
    either. Without another user and Landlock: signals to processes of the same user.
Elsewhere than on Linux there are the limits alone.
"""
