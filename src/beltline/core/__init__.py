"""Floor 0: the words and rules of Beltline as pure values and functions.

No I/O, no clock, no randomness, no asyncio: everything here can be called a million times in a test and gives the same answer.
"""
