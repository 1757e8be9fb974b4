# mypy: ignore-errors
"""`enum.Enum`, as far as members by value and by name go."""

from __future__ import annotations

__all__ = ["Enum"]


class _Kind(type):
    def __new__(mcs, name, bases, body):
        values = {} if not bases else {key: body.pop(key) for key in [*body] if key.isupper()}
        cls = super().__new__(mcs, name, bases, body)
        cls._members = {}
        for key, value in values.items():
            member = object.__new__(cls)
            member.name, member.value = key, value
            cls._members[value] = member
            setattr(cls, key, member)
        return cls

    def __call__(cls, value):
        if value not in cls._members:
            raise ValueError(f"{value!r} is no {cls.__name__}")
        return cls._members[value]

    def __iter__(cls):
        return iter(cls._members.values())


class Enum(metaclass=_Kind):
    """Members are what the class's body has in capital letters."""
