"""Contenders for the test of the benchmarks' harness."""

import os
from pathlib import Path


class Task:
    """Writes its name into a file each time it works."""

    def __init__(self, name: str, diary: str, value: float) -> None:
        self.name, self.diary, self.value = name, Path(diary), value

    def work(self) -> None:
        with self.diary.open("a") as file:
            file.write(self.name + "\n")
        print("chatter on stdout, as libraries have it")

    def result(self) -> dict[str, list[float]]:
        return {"value": [self.value]}


class Doomed(Task):
    """Its process ends in the middle of its work."""

    def work(self) -> None:
        os._exit(3)


def task(**arguments) -> Task:
    return Task(**arguments)


def doomed(**arguments) -> Task:
    return Doomed(**arguments)


def failing(**arguments) -> Task:
    raise ValueError("no such model")
