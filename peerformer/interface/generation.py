"""How `peerformer generate` writes, as flags, and which of them go together.

Flags that were not given are None here, so that those that have no meaning beside others can be
refused instead of ignored. Bounds are checked where values are used: in `generate/`.

Knows nothing about models or output.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.generate.beam_search import BeamSearch, EarlyStopping
from peerformer.generate.caching import CacheOptions
from peerformer.generate.sampling import CUTS, DEFAULT, Sampling


@Parameter(name="*")
@dataclass(frozen=True)
class SamplingFlags:
    """How a token is chosen."""

    temperature: Annotated[
        float | None,
        Parameter(
            help="0 always takes the likeliest token; higher is more varied."
            f" Not given: {DEFAULT.temperature}."
        ),
    ] = None
    top_k: Annotated[
        int | None, Parameter(help="Choose among so many of the likeliest tokens.")
    ] = None
    top_p: Annotated[
        float | None,
        Parameter(
            help="Choose among the likeliest tokens that together have this probability."
            f" Without this, --top-k, --min-p and --typical: {DEFAULT.top_p}."
        ),
    ] = None
    min_p: Annotated[
        float | None,
        Parameter(help="Choose among tokens at least this many times as likely as the likeliest."),
    ] = None
    typical: Annotated[
        float | None,
        Parameter(help="Choose among the most typical tokens that together have this probability."),
    ] = None
    repetition_penalty: Annotated[
        float, Parameter(help="Above 1: tokens of the prompt and the text become less likely.")
    ] = 1.0
    presence_penalty: Annotated[
        float, Parameter(help="Taken off the logits of tokens that the text has.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Parameter(help="Taken off the logits of tokens as often as the text has them.")
    ] = 0.0
    no_repeat_ngram: Annotated[
        int | None, Parameter(help="Let no so many tokens in a row come twice.")
    ] = None

    def sampling(self) -> Sampling:
        """The settings, with the defaults of this command.

        Raises:
            ConfigError: a value that is not allowed.
        """
        temperature = DEFAULT.temperature if self.temperature is None else self.temperature
        cuts = {
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical,
        }
        if temperature > 0 and all(value is None for value in cuts.values()):
            cuts["top_p"] = DEFAULT.top_p
        return self._sampling(temperature, cuts)

    def penalties(self) -> Sampling:
        """The penalties alone, for beams.

        Raises:
            ConfigError: a flag of sampling was given, or a value is not allowed.
        """
        for name in ("temperature", *CUTS):
            attribute = "typical" if name == "typical_p" else name
            if getattr(self, attribute) is not None:
                raise _not_with_beams(attribute, "beams are searched, and nothing is drawn")
        return self._sampling(0.0, {})

    def _sampling(self, temperature: float, cuts: dict[str, float | None]) -> Sampling:
        return Sampling(
            temperature=temperature,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            no_repeat_ngram=self.no_repeat_ngram,
            **cuts,  # type: ignore[arg-type]
        )


@Parameter(name="*")
@dataclass(frozen=True)
class BeamFlags:
    """Beam search instead of sampling."""

    beams: Annotated[
        int | None, Parameter(help="Search the likeliest text with so many beams; draw nothing.")
    ] = None
    n_best: Annotated[
        int | None, Parameter(help="Beams that are shown, the best first. Not given: 1.")
    ] = None
    length_penalty: Annotated[
        float | None,
        Parameter(help="Above 0 prefers longer beams, below 0 shorter ones. Not given: 1."),
    ] = None
    early_stopping: Annotated[
        Literal["yes", "no", "never"] | None,
        Parameter(
            help="End at the first so many ended beams: yes; or when better ones are"
            " unlikely: no; or impossible: never. Not given: no."
        ),
    ] = None

    def search(self) -> BeamSearch | None:
        """The search; None where tokens are drawn.

        Raises:
            ConfigError: a flag of beams without beams, or a value that is not allowed.
        """
        given = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) is not None
        }
        if self.beams is None:
            if not given:
                return None
            flag = next(iter(given)).replace("_", "-")
            raise ConfigError(
                f"--{flag} has no meaning without --beams", hint=f"--beams 4 --{flag} …"
            )
        return BeamSearch(
            beams=self.beams,
            best=given.get("n_best", BeamSearch.best),
            length_penalty=given.get("length_penalty", BeamSearch.length_penalty),
            early_stopping=EarlyStopping(given.get("early_stopping", "no")),
        )


@Parameter(name="*")
@dataclass(frozen=True)
class CacheFlags:
    """Where keys and values of the tokens before are kept."""

    cache: Annotated[
        Literal["contiguous", "int8", "paged", "paged-int8"],
        Parameter(help="One block for each text, or pages of a fixed pool; int8: in eight bits."),
    ] = "contiguous"
    page_size: Annotated[int | None, Parameter(help="Tokens of a page. Not given: 16.")] = None
    cache_pages: Annotated[
        int | None,
        Parameter(help="Pages of the pool. Not given: as many as --batch longest texts need."),
    ] = None
    prefix_cache: Annotated[
        Literal["lru", "arc", "s3-fifo"] | None,
        Parameter(help="Compute beginnings that prompts share once; by which rule pages go."),
    ] = None
    prefix_pages: Annotated[
        int | None, Parameter(help="Most pages kept for that. Not given: 256.")
    ] = None

    def options(self) -> CacheOptions:
        """The settings.

        Raises:
            ConfigError: flags that need each other, or a value that is not allowed.
        """
        paged = self.cache.startswith("paged")
        if self.page_size is not None and not paged:
            raise ConfigError(
                f"--page-size needs a cache of pages, and the cache is {self.cache}",
                hint=f"--cache paged --page-size {self.page_size}",
            )
        if self.prefix_pages is not None and self.prefix_cache is None:
            raise ConfigError(
                "--prefix-pages has no meaning without --prefix-cache",
                hint=f"--cache paged --prefix-cache arc --prefix-pages {self.prefix_pages}",
            )
        return CacheOptions(
            kind=self.cache,
            page_size=CacheOptions.page_size if self.page_size is None else self.page_size,
            pages=self.cache_pages,
            policy=self.prefix_cache,
            prefix_pages=(
                CacheOptions.prefix_pages if self.prefix_pages is None else self.prefix_pages
            ),
        )


def refuse_with_beams(
    *, stop: tuple[str, ...], logprobs: int | None, seed: int | None, batch: int | None
) -> None:
    """Refuse what beams have no use for.

    Raises:
        ConfigError: one of these was given.
    """
    if stop:
        raise _not_with_beams("stop", "beams end at the token that ends a text, or at --tokens")
    if logprobs is not None:
        raise _not_with_beams("logprobs", "a beam has one score, which is shown with it")
    if seed is not None:
        raise _not_with_beams("seed", "beams are searched, and nothing is drawn")
    if batch is not None:
        raise _not_with_beams("batch", "the beams of one prompt are a batch")


def _not_with_beams(name: str, why: str) -> ConfigError:
    flag = name.replace("_", "-")
    return ConfigError(
        f"--{flag} does not go with --beams", why=why, hint=f"leave out --{flag}, or --beams"
    )
