"""Named alternatives of a search space with conditional parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tuner.config.values import Entry, ParameterValue, Table


class Choice(Table):
    """A named alternative; its parameters exist only if it is chosen."""

    name: str

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield each parameter as (`"cosine.final"`, its entry)."""
        for key in type(self).model_fields:
            if key != "name":
                yield f"{self.name}.{key}", getattr(self, key)


def own(params: Mapping[str, ParameterValue], name: str) -> dict[str, ParameterValue]:
    """Return the parameters of one alternative in a trial's, `cosine.final` as `final`."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)
    }
