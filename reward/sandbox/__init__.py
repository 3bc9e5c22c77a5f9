"""A sandbox for code that nobody has read: a reply's program is run against tests, and only their outcomes come out.

Three processes take part in a verdict, each a plain Python without torch or any installed package:

    keeper   trusted; starts the two others, reads the verdict, ends everything that is left, and says so (`keeper`)
    judge    runs the tests, in a cage of its own: tests come with data, and data with strangers (`judge`)
    reply    runs the reply's code, in another cage (`reply`)

The code never shares an interpreter with the tests. Where a test calls the reply's function, the arguments go to the
other cage as plain data and the value comes back as plain data (`wire`); it is compared over here. So a reply cannot
find the tests in a frame, print or return a success, end the interpreter before the verdict, patch `assert`, or bring a
value whose `__eq__` is always true: whatever it does, it only answers "what is f(3)?".

A cage (`cage`), where the kernel allows it:
    namespaces      user, mount, pid, network, ipc, uts: no process of the machine, no network, not even loopback
    root            one of its own, read-only, with Python's library and the system's; no /home, /proc, /etc, shell
    /tmp            in memory, bounded, empty: the only place to write; gone with the cage
    user            another one, of nobody else's number where it is started by root; no capabilities, no new privileges
    Landlock        beside that, and instead where there are no namespaces: files, TCP, signals
    seccomp         no sockets, shared memory, keys, io_uring, bpf, tracing, further namespaces (x86-64, ARM, RISC-V)
    limits          of CPU time, memory, file size, processes, open files; no core dumps
    together        of memory and CPU time of all processes, twice those of one; by a look every 50 ms (`together`)
    nothing given   an empty environment, all descriptors closed
    an end          of wall-clock time; then everything is killed, daemons too, before the verdict is told

What it does not cover:
    the kernel's own faults: few system calls are taken away. For code of an adversary put a virtual machine around it.
    what is used between two looks: for 50 ms up to `processes` times `memory_mib` can be held, /tmp and what lies in
    pipes are beside that; where memory runs out the kernel ends the cages first. Processes that live shorter than that
    and are waited for by nobody use CPU that is not counted, at most until `reply_seconds` of wall clock are over.
    timing: a reply sees how fast the machine is, and uses its share of CPU until its limit.
    tests that prove little: what is right on the tests is right here, and what a test asks of objects of the reply's
    own classes (`assert f(3).ok()`) is answered by the reply.
    without namespaces (`isolation: best`): where there is no Landlock either, files that everybody may read, and, where
    it is not root that starts it, everything else that the user may: files, processes, memory of others.
Elsewhere than on Linux there are the limits alone.
"""
