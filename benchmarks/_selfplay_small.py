"""placeholder"""


def main(*a): ...
