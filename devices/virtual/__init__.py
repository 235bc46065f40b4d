"""Virtual boards: Debian for ARM, emulated instruction by instruction, with an SSH server on a loopback port.

    plan        what a board is and every command line that makes or runs it; pure functions
    build       makes the root file system, once, in the cache
    control     starts and ends a board, and tells which ones run
    supervise   the first process of a running board

Everything that answers on a board (the SSH server, the shell, Python, the runtimes) is a program for ARM under qemu's
user-mode emulation. The kernel is this machine's, and so are memory and load. Times taken on a board say nothing about
any hardware.
"""
