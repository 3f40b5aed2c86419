"""What an endpoint says of itself and of its models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from . import reading
from .http import Endpoint
from .options import LLAMA
from .trouble import Refusal

NOT_THERE = (404, 405, 501)  # statuses of what an endpoint does not have
_LISTED = 20  # names of models in a message


class About:
    """Of one endpoint. `card` completes its settings."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def models(self) -> list[str]:
        """Those that it lists. Refusal: it cannot be used with these settings."""
        chosen = self._endpoint.settings.model
        names = _names(await self._cards())
        if chosen and names and chosen not in names:
            words = f"it has no model {chosen!r}, it lists {self._some(names)}"
            hint = "`--set model=NAME`; `--no-check` adds it anyway"
            raise self._endpoint.refusal(words, hint)
        if self._endpoint.settings.dialect == LLAMA:
            await self.props()
        return names

    async def _cards(self) -> list[Mapping[str, object]]:
        """What the endpoint says of its models; nothing when it has no list, but one is named."""
        try:
            answer = await self._endpoint.ask(f"{self._endpoint.settings.url}/models")
        except Refusal as refusal:
            if refusal.status in NOT_THERE and self._endpoint.settings.model:
                return []
            raise
        found = reading.items(answer) or reading.items(reading.fields(answer).get("data"))
        cards = list(map(reading.fields, found))
        if not _names(cards) and not self._endpoint.settings.model:
            words = "it lists no models; the url is perhaps not that of an OpenAI-compatible API"
            raise self._endpoint.refusal(words, "`--set model=NAME` if it has one all the same")
        return cards

    def _some(self, names: Sequence[str]) -> str:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return self._endpoint.clean(", ".join(names[:_LISTED])) + more

    async def card(self) -> Mapping[str, object]:
        """What the endpoint says of its model; chooses the model when nobody did."""
        settings = self._endpoint.settings
        cards = await self._cards()
        names = _names(cards)
        if not settings.model:
            if len(names) != 1:
                words = f"which model? it lists {len(names)}: {self._some(names)}"
                raise self._endpoint.refusal(words, "`--set model=NAME`")
            self._endpoint.settings = replace(settings, model=names[0])
        mine = (card for card in cards if card.get("id") == self._endpoint.settings.model)
        return next(mine, reading.fields(None))

    async def props(self) -> dict[str, int | None]:
        """What llama.cpp's server says of itself."""
        try:
            answer = await self._endpoint.ask(f"{self._endpoint.settings.root}/props")
        except Refusal as refusal:
            if refusal.status in NOT_THERE:
                words = "this is not llama.cpp's server"
                raise self._endpoint.refusal(words, "leave out `dialect=llama`") from refusal
            raise
        props = reading.fields(answer)
        made = reading.fields(props.get("default_generation_settings"))
        return {
            "slots": reading.whole_number(props.get("total_slots")),
            "window": reading.whole_number(made.get("n_ctx")),
        }


def _names(cards: Sequence[Mapping[str, object]]) -> list[str]:
    return [name for card in cards if isinstance(name := card.get("id"), str) and name]
