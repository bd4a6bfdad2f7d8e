# SPDX-License-Identifier: Apache-2.0
"""`dataclass` and `NamedTuple` for what stands between a program and its first socket.

The standard library's write and compile four functions for each class, and import `inspect` or `typing` for it: a
third of a supervisor's start, for which every command under sdrun waits. These are put together of functions that exist
already. They know what this project uses and no more (of options `frozen`; `slots` is accepted; `compare`, `kw_only`
and `InitVar` are not known). Type checkers see the standard ones; tests/sdlib/test_records.py compares the two.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, replace
    from typing import NamedTuple, cast
else:
    from _collections import _tuplegetter

    _missing = object()

    def _complete(cls, names, defaults, args, named):
        """The values of all members, for `args` and `named` as the caller gave them."""
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__}() takes {len(names)} values, {len(args)} were given")
        values = list(args)
        for name in names[len(args):]:
            value = named.pop(name) if name in named else defaults.get(name, _missing)
            if value is _missing:
                raise TypeError(f"{cls.__name__}() misses {name!r}")
            values.append(value.factory() if isinstance(value, field) else value)
        if named:
            raise TypeError(f"{cls.__name__}() got an unexpected or second {next(iter(named))!r}")
        return values

    def cast(_kind, value):
        """As typing.cast."""
        return value

    # -------------------------------------------------------------- dataclass

    class field:
        """A member whose default is made for each instance, or that is not shown."""

        __slots__ = ("default", "factory", "repr")

        def __init__(self, *, default=_missing, default_factory=None, repr=True):
            self.default, self.factory, self.repr = default, default_factory, repr

    def _init(self, *args, **named):
        names = self.__match_args__
        if not named and self._first <= len(args) < len(names):
            args += self._rest[len(args) - self._first:]
        elif named or len(args) != len(names):
            args = _complete(type(self), names, self._defaults, args, named)
        self.__dict__.update(zip(names, args, strict=True))

    def _values(self):
        return tuple([getattr(self, name) for name in self.__match_args__])

    def _repr(self):
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__ if name not in self._hidden)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _eq(self, other):
        return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented

    def _hash(self):
        return hash(_values(self))

    def _refuse(self, name, *_value):
        raise AttributeError(f"cannot change {name!r} of a frozen {type(self).__name__}")

    def _collect(cls):
        """Members, defaults and what is not shown, those of the classes that it is made of first."""
        names = dict.fromkeys(getattr(cls, "__match_args__", ()))
        defaults, hidden = dict(getattr(cls, "_defaults", ())), set(getattr(cls, "_hidden", ()))
        for name, kind in cls.__dict__.get("__annotations__", {}).items():  # noqa: RUF063  that is the import again
            if kind.startswith("ClassVar"):
                continue
            names[name] = None
            value = cls.__dict__.get(name, _missing)
            if isinstance(value, field):
                delattr(cls, name)
                if not value.repr:
                    hidden.add(name)
                if value.factory is None and (value := value.default) is not _missing:
                    setattr(cls, name, value)
            if value is not _missing:
                defaults[name] = value
        return tuple(names), defaults, frozenset(hidden)

    def dataclass(cls=None, *, frozen=False, slots=False):
        """As dataclasses.dataclass."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen)
        cls.__match_args__, cls._defaults, cls._hidden = _collect(cls)
        plain = [name in cls._defaults and not isinstance(cls._defaults[name], field) for name in cls.__match_args__]
        cls._first = len(plain) - [*plain[::-1], False].index(False)
        cls._rest = tuple(cls._defaults[name] for name in cls.__match_args__[cls._first:])
        own = cls.__dict__
        own_hash = "__hash__" in own and not (own["__hash__"] is None and "__eq__" in own)
        members = {"__init__": _init, "__repr__": _repr, "__eq__": _eq}
        if frozen:
            members |= {"__setattr__": _refuse, "__delattr__": _refuse}
        for name, function in members.items():
            if name not in own:
                setattr(cls, name, function)
        if not own_hash:
            cls.__hash__ = _hash if frozen else None
        return cls

    def replace(record, **named):
        """As dataclasses.replace."""
        return type(record)(**dict(zip(record.__match_args__, _values(record), strict=True)) | named)

    def _plain(value):
        if isinstance(getattr(value, "_defaults", None), dict) and hasattr(value, "_hidden"):
            return asdict(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*[_plain(item) for item in value])
        if isinstance(value, (list, tuple)):
            return type(value)(_plain(item) for item in value)
        if isinstance(value, dict):
            return type(value)((_plain(key), _plain(item)) for key, item in value.items())
        return value

    def asdict(record):
        """As dataclasses.asdict; what is neither a record nor a container is not copied."""
        return {name: _plain(getattr(record, name)) for name in record.__match_args__}

    # -------------------------------------------------------------- named tuple

    class NamedTuple(tuple):
        """As typing.NamedTuple."""

        __slots__ = ()
        _fields = ()

        def __init_subclass__(cls):
            names = tuple(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063
            if not names:
                return  # a class with more functions
            cls._fields = cls.__match_args__ = names
            cls._field_defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
            for index, name in enumerate(names):
                setattr(cls, name, _tuplegetter(index, ""))

        def __new__(cls, *args, **named):
            if named or len(args) != len(cls._fields):
                args = _complete(cls, cls._fields, cls._field_defaults, args, named)
            return tuple.__new__(cls, args)

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in zip(self._fields, self, strict=True))})"

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _replace(self, **named):
            return type(self)(**dict(zip(self._fields, self, strict=True)) | named)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))


__all__ = ["NamedTuple", "asdict", "cast", "dataclass", "field", "replace"]
