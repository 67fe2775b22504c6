"""Languages by their ISO 639-1 codes, and how often each is drawn: p of a language ~ (its share of the text) ** alpha.

The exponent is that of Conneau and Lample 2019 (section 3.1) and of VECO (Luo et al. 2021): below 1 it raises the small
languages. A text of two languages, such as sentences and their translations, has both codes: `en-zh`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from absl.app import UsageError

from ground.words import nearest

Item = TypeVar("Item")

ALPHA = 0.5
"""VECO's exponent."""
BETWEEN = "-"
"""Stands between the codes of a text of two languages."""
_VARIANT = "_"
_LONGEST = 40

# ISO 639-1, and languages of common multilingual corpora that have three letters alone.
_TABLE = """
aa Afar; ab Abkhazian; ae Avestan; af Afrikaans; ak Akan; am Amharic; an Aragonese; ar Arabic; as Assamese; av Avaric;
ay Aymara; az Azerbaijani; ba Bashkir; be Belarusian; bg Bulgarian; bi Bislama; bm Bambara; bn Bengali; bo Tibetan;
br Breton; bs Bosnian; ca Catalan; ce Chechen; ch Chamorro; co Corsican; cr Cree; cs Czech; cu Church Slavonic;
cv Chuvash; cy Welsh; da Danish; de German; dv Divehi; dz Dzongkha; ee Ewe; el Greek; en English; eo Esperanto;
es Spanish; et Estonian; eu Basque; fa Persian; ff Fulah; fi Finnish; fj Fijian; fo Faroese; fr French;
fy Western Frisian; ga Irish; gd Scottish Gaelic; gl Galician; gn Guarani; gu Gujarati; gv Manx; ha Hausa; he Hebrew;
hi Hindi; ho Hiri Motu; hr Croatian; ht Haitian; hu Hungarian; hy Armenian; hz Herero; ia Interlingua; id Indonesian;
ie Interlingue; ig Igbo; ii Sichuan Yi; ik Inupiaq; io Ido; is Icelandic; it Italian; iu Inuktitut; ja Japanese;
jv Javanese; ka Georgian; kg Kongo; ki Kikuyu; kj Kuanyama; kk Kazakh; kl Kalaallisut; km Khmer; kn Kannada; ko Korean;
kr Kanuri; ks Kashmiri; ku Kurdish; kv Komi; kw Cornish; ky Kyrgyz; la Latin; lb Luxembourgish; lg Ganda; li Limburgan;
ln Lingala; lo Lao; lt Lithuanian; lu Luba-Katanga; lv Latvian; mg Malagasy; mh Marshallese; mi Maori; mk Macedonian;
ml Malayalam; mn Mongolian; mr Marathi; ms Malay; mt Maltese; my Burmese; na Nauru; nb Norwegian Bokmal;
nd North Ndebele; ne Nepali; ng Ndonga; nl Dutch; nn Norwegian Nynorsk; no Norwegian; nr South Ndebele; nv Navajo;
ny Chichewa; oc Occitan; oj Ojibwa; om Oromo; or Odia; os Ossetian; pa Punjabi; pi Pali; pl Polish; ps Pashto;
pt Portuguese; qu Quechua; rm Romansh; rn Rundi; ro Romanian; ru Russian; rw Kinyarwanda; sa Sanskrit; sc Sardinian;
sd Sindhi; se Northern Sami; sg Sango; si Sinhala; sk Slovak; sl Slovenian; sm Samoan; sn Shona; so Somali; sq Albanian;
sr Serbian; ss Swati; st Southern Sotho; su Sundanese; sv Swedish; sw Swahili; ta Tamil; te Telugu; tg Tajik; th Thai;
ti Tigrinya; tk Turkmen; tl Tagalog; tn Tswana; to Tonga; tr Turkish; ts Tsonga; tt Tatar; tw Twi; ty Tahitian;
ug Uighur; uk Ukrainian; ur Urdu; uz Uzbek; ve Venda; vi Vietnamese; vo Volapuk; wa Walloon; wo Wolof; xh Xhosa;
yi Yiddish; yo Yoruba; za Zhuang; zh Chinese; zu Zulu; ast Asturian; ceb Cebuano; fil Filipino; nso Northern Sotho;
yue Cantonese
"""
NAMES: Mapping[str, str] = {
    code: name for code, _, name in (entry.strip().partition(" ") for entry in _TABLE.split(";"))
}
"""English name of every known language by its code."""


def find_language(word: str, where: str) -> str:
    """Return the code, or two with a dash between, that a user wrote, in small letters.

    A code may have a variant behind it, such as zh_hant.

    Args:
        word: as it was written.
        where: the flag with its value, for messages.

    Raises:
        UsageError: a code is unknown, or a text is to be of more than two languages, or of one twice.
    """
    code = word.lower()
    parts = code.split(BETWEEN)
    for part in parts:
        if part.split(_VARIANT)[0] not in NAMES or len(part) > _LONGEST:
            near = _nearest(part)
            raise UsageError(
                f"{where}: {part!r} is no known code of a language; the nearest is {near!r} ({NAMES[near]}): expected "
                "a code of ISO 639-1, such as en, or two for pairs, en-zh"
            )
    if len(parts) > 2 or len(set(parts)) < len(parts):
        raise UsageError(f"{where}: {code!r} is no pair of languages; expected two codes, such as en-zh")
    return code


def _nearest(word: str) -> str:
    by_name = {name.lower(): code for code, name in NAMES.items()}
    found = nearest(word[:_LONGEST], [*NAMES, *by_name])
    return by_name.get(found, found)


def is_pair(language: str) -> bool:
    """Whether a text is of two languages."""
    return BETWEEN in language


def drawn_shares(sizes: Mapping[str, float], alpha: float) -> dict[str, float]:
    """Return how often each language is drawn; the sum is 1.

    Example:
        sizes   en 90, sw 10; alpha 0.5
        shares  0.9 and 0.1, raised to 0.5: 0.949 and 0.316
        result  en 0.75, sw 0.25
    """
    whole = sum(sizes.values())
    raised = {language: math.pow(size / whole, alpha) if size else 0.0 for language, size in sizes.items()}
    total = sum(raised.values())
    return {language: value / total for language, value in raised.items()}


def repeated(item: Item, place: int, size: int, wanted: int) -> list[Item]:
    """Return an item so often that of `size` items at the places 0, 1 .. there are `wanted`, spread evenly.

    Example:
        items a b c at 0, 1, 2; wanted 2: [] [b] [c]      wanted 4: [a] [b] [c c]
    """
    return [item] * ((place + 1) * wanted // size - place * wanted // size)


def mixed_shares(sizes: Mapping[str, float], alpha: float, parallel_share: float | None) -> dict[str, float]:
    """Return how often each language and each pair of languages is drawn.

    Args:
        sizes: of their texts.
        alpha: the exponent, for languages among themselves and for pairs among themselves.
        parallel_share: of all pairs together; None: a pair is drawn as if it were a language.
    """
    pairs = {name: size for name, size in sizes.items() if is_pair(name)}
    alone = {name: size for name, size in sizes.items() if not is_pair(name)}
    if parallel_share is None or not pairs or not alone:
        return drawn_shares(sizes, alpha)
    parts = ((alone, 1 - parallel_share), (pairs, parallel_share))
    shares = {name: whole * p for part, whole in parts for name, p in drawn_shares(part, alpha).items()}
    return {name: shares[name] for name in sizes}
