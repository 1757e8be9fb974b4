# mypy: ignore-errors
"""`dataclasses`, as far as frozen classes with defaults and a comparison go."""

from __future__ import annotations

__all__ = ["dataclass", "field"]


def field(*, repr: bool = True) -> None:
    """A field whose ``repr`` is of no matter here: there is none."""


def dataclass(*, frozen: bool, slots: bool):
    """Fields by position or by name, each given once or with a default; compared by value."""

    def made(cls):
        body = cls.__dict__
        names = tuple(body.get("__annotations__", ()))
        defaults = {
            name: cls.__dict__[name] for name in names if cls.__dict__.get(name) is not None
        }
        for name in names:
            if name in body:
                delattr(cls, name)

        def init(self, *values, **named):
            if len(values) > len(names):
                raise TypeError(f"{cls.__name__} has {len(names)} fields")
            given = dict(zip(names, values))  # noqa: B905 - the length was compared
            for name, value in named.items():
                if name in given or name not in names:
                    raise TypeError(f"{cls.__name__}: {name}")
                given[name] = value
            for name in names:
                if name not in given and name not in defaults:
                    raise TypeError(f"{cls.__name__} lacks {name}")
                object.__setattr__(self, name, given.get(name, defaults.get(name)))

        def same(self, other):
            return type(self) is type(other) and all(
                getattr(self, name) == getattr(other, name) for name in names
            )

        def refuse(self, name, value):
            raise AttributeError(f"{cls.__name__}.{name} is frozen")

        cls.__init__, cls.__eq__, cls.__setattr__ = init, same, refuse
        cls.__match_args__, cls.__hash__ = names, None
        return cls

    return made
