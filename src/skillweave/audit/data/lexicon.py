"""Words that several signals look for: conditions, refusals and acceptances, requests, labels of answers.

The lists are general and short, in the languages that public RL data is mostly written in. The signals that need no
list work in any language.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONDITIONS = _words(
    "if unless when whenever otherwise else except only provided "
    "wenn falls sonst außer sofern si sinon lorsque quand sauf cuando salvo excepto если иначе когда "
    "如 若 当 则 否"
)
"""Words that begin a condition or its alternative."""

REFUSING = _words(
    "refuse refuses refused refusal decline declines declined reject rejects rejected deny denies denied cannot unable "
    "sorry apologize apologise forbidden prohibited disallowed unsafe harmful "
    "ablehnen verweigern refuser rechazar negar отказать 拒 绝"
)
ACCEPTING = _words(
    "accept accepts accepted comply complies complied allow allows allowed permit permits permitted approve approves "
    "approved agree agrees agreed obey obeys fulfil fulfill akzeptieren erlauben accepter permettre aceptar permitir "
    "принять 接 受"
)
REFUSAL = re.compile(
    r"\brefus\w*|\b(?:cannot|can['’]?t|won['’]t|unable to)\b|\bi['’]?m (?:so |very )?sorry\b|\bsorry, (?:but|i)\b|"
    r"\bdecline[sd]?\b|\b(?:not|never) (?:allowed|permitted|able) to\b|拒绝|无法|不能|je ne peux pas|no puedo|"
    r"kann (?:ich )?nicht|не могу",
    re.IGNORECASE,
)
"""What a gold answer holds if it is a refusal."""
LONGEST_REFUSAL = 400
"""Characters of a refusal: a long solution may say "cannot" and refuse nothing."""

REQUESTS = _words(
    "add answer append arrange build calculate change check choose classify combine compare complete compose compute "
    "convert copy correct count create decide decode decrypt define delete describe design determine draft draw edit "
    "encode estimate evaluate explain extract factor fill find finish fix generate give group help identify implement "
    "insert list make match merge move name open order output predict print provide prove put rank read remove rename "
    "repeat replace rewrite return reverse round say select send show simplify solve sort spell split start state "
    "suggest summarise summarize tell translate turn use verify write what which who whom whose where why how can "
    "could please schreibe berechne finde nenne gib erkläre übersetze écris calcule trouve donne explique traduis "
    "escribe calcula encuentra da explica traduce напиши найди вычисли"
)
"""Words with which a request begins."""

QUANTITIES = _words(
    "number numbers sum total count many much calculate compute difference product ratio percent percentage average "
    "mean value larger largest smaller smallest greater least maximum minimum how next cost price age distance area "
    "anzahl summe combien nombre cuántos suma сколько 多 少 几"
)
"""Words of a request whose answer is a number."""

ANSWER_LABELS = (
    "answer|a|output|response|assistant|reply|solution|result|réponse|antwort|ausgabe|respuesta|salida|ответ|"
    "答案|回答|答|输出"
)
QUESTION_LABELS = (
    "question|q|input|user|human|problem|task|prompt|example|frage|eingabe|pregunta|entrada|вопрос|问题|问|输入"
)
