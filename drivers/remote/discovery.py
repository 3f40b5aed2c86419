"""Queries an endpoint for its models and its properties."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from . import parsing
from .failure import Refusal
from .http import EndpointClient
from .options import LLAMA

UNSUPPORTED = (404, 405, 501)  # HTTP statuses for a path that the endpoint does not have
_LISTED = 20  # names of models in a message


class Discovery:
    """Queries of one endpoint. `card` completes its settings."""

    def __init__(self, endpoint: EndpointClient) -> None:
        self._endpoint = endpoint

    async def models(self) -> list[str]:
        """The models that it lists. Refusal: it cannot be used with these settings."""
        chosen = self._endpoint.settings.model
        names = _names(await self._cards())
        if chosen and names and chosen not in names:
            message = f"no model {chosen!r}; it lists {self._listed(names)}"
            hint = "`--set model=NAME` selects a model; `--no-check` adds it without this check"
            raise self._endpoint.refusal(message, hint)
        if self._endpoint.settings.dialect == LLAMA:
            await self.props()
        return names

    async def _cards(self) -> list[Mapping[str, object]]:
        """The entries of the endpoint's model list. Empty when it has no list and the settings name
        a model."""
        try:
            answer = await self._endpoint.ask(f"{self._endpoint.settings.url}/models")
        except Refusal as refusal:
            if refusal.status in UNSUPPORTED and self._endpoint.settings.model:
                return []
            raise
        found = parsing.items(answer) or parsing.items(parsing.fields(answer).get("data"))
        cards = list(map(parsing.fields, found))
        if not _names(cards) and not self._endpoint.settings.model:
            message = "it lists no models; the url may not be that of an OpenAI-compatible API"
            raise self._endpoint.refusal(message, "`--set model=NAME` if it has a model anyway")
        return cards

    def _listed(self, names: Sequence[str]) -> str:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return self._endpoint.clean(", ".join(names[:_LISTED])) + more

    async def card(self) -> Mapping[str, object]:
        """The list entry of the model. Selects the only listed model when none is set."""
        settings = self._endpoint.settings
        cards = await self._cards()
        names = _names(cards)
        if not settings.model:
            if len(names) != 1:
                message = f"no model is set; it lists {len(names)}: {self._listed(names)}"
                raise self._endpoint.refusal(message, "`--set model=NAME` selects one")
            self._endpoint.settings = replace(settings, model=names[0])
        mine = (card for card in cards if card.get("id") == self._endpoint.settings.model)
        return next(mine, parsing.fields(None))

    async def props(self) -> dict[str, int | None]:
        """Slots and window of a llama.cpp server. Refusal: it is not one."""
        try:
            answer = await self._endpoint.ask(f"{self._endpoint.settings.root}/props")
        except Refusal as refusal:
            if refusal.status in UNSUPPORTED:
                message = "not a llama.cpp server: it has no /props"
                raise self._endpoint.refusal(message, "leave out `dialect=llama`") from refusal
            raise
        props = parsing.fields(answer)
        defaults = parsing.fields(props.get("default_generation_settings"))
        return {
            "slots": parsing.whole_number(props.get("total_slots")),
            "window": parsing.whole_number(defaults.get("n_ctx")),
        }


def _names(cards: Sequence[Mapping[str, object]]) -> list[str]:
    return [name for card in cards if isinstance(name := card.get("id"), str) and name]
