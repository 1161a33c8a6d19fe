"""The parts of the daemon put together, room by room: each gets just what it needs.

A room's `build` has local variables only, so that nothing can be used before it is made.
"""
