"""Tasks for the test of the benchmarks' harness."""

import os
from pathlib import Path


class Task:
    """Appends its name to a file at each call of ``work``."""

    def __init__(self, name: str, diary: str, value: float) -> None:
        self.name, self.diary, self.value = name, Path(diary), value

    def work(self) -> None:
        with self.diary.open("a") as file:
            file.write(self.name + "\n")
        print("output on stdout, as of libraries")

    def result(self) -> dict[str, list[float]]:
        return {"value": [self.value]}


class Doomed(Task):
    """Exits its process during ``work``."""

    def work(self) -> None:
        os._exit(3)


def task(**arguments) -> Task:
    return Task(**arguments)


def doomed(**arguments) -> Task:
    return Doomed(**arguments)


def failing(**arguments) -> Task:
    raise ValueError("no such model")
