"""Warm workers: a process that has imported torch and diffusers, the zygote, from which workers are forked.

`hotshelf worker PROGRAM` is a stub: it hands its program, environment and open files to the zygote, whose child becomes that
program; the stub passes signals on and ends as the worker does. Where no zygote answers, or it is not what a process started
here and now would be, the stub becomes the program itself. So a worker is never other than if it were started plainly.

Invariants: the zygote runs no tensor operation, has one thread and no CUDA context whenever it forks, and holds no connection.
"""
