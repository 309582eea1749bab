"""A named alternative of the space, with parameters that exist only when it is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tuner.config.values import Entry, ParameterValue, Table


class Choice(Table):
    """A named alternative with parameters of its own, which exist only when it is chosen."""

    name: str

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield each parameter as (`"cosine.final"`, its entry)."""
        for key in type(self).model_fields:
            if key != "name":
                yield f"{self.name}.{key}", getattr(self, key)


def own(params: Mapping[str, ParameterValue], name: str) -> dict[str, ParameterValue]:
    """Pick the parameters of one alternative out of a trial's: `cosine.final` as `final`."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)
    }
