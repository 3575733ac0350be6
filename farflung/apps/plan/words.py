"""What a plan says, in English and Japanese: sentences by their key, filled in with values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from farflung.apps.plan.pilot_words import PILOT_WORDS

LANGUAGES = ("en", "ja")


@dataclass(frozen=True, slots=True)
class Sentence:
    """Something to say, in any language."""

    key: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Texts, numbers, and sentences, which are said in the same language."""

    def __call__(self, language: str = "en") -> str:
        """In words."""
        words = {name: value(language) if isinstance(value, Sentence) else value for name, value in self.values.items()}
        return WORDS[self.key][LANGUAGES.index(language)].format(**words)


def said(key: str, **values: str | int | float | Sentence) -> Sentence:
    """The sentence of that key."""
    assert key in WORDS, key
    return Sentence(key, values)


WORDS: dict[str, tuple[str, str]] = {
    **PILOT_WORDS,
    # Titles and columns
    "rank": ("", ""),
    "method": ("method", "方法"),
    "machines": ("machines", "台数"),
    "meets": ("goal", "目標"),
    "time serve": ("answer", "回答時間"),
    "time": ("time", "時間"),
    "rate": ("tokens/s", "トークン/秒"),
    "bytes serve": ("bytes/h", "拠点間転送量/時"),
    "bytes": ("bytes", "拠点間転送量"),
    "cost serve": ("cost/h", "費用/時"),
    "cost": ("cost", "費用"),
    "energy serve": ("kW", "kW"),
    "energy": ("kWh", "kWh"),
    "confidence": ("confidence", "確度"),
    "limit": ("what limits it", "律速要因"),
    "change": ("what would help most", "最も効果的な変更"),
    "yes": ("met", "達成"),
    "no": ("missed", "未達"),
    "start": ("To start with", "開始方法"),
    "bytes per way": ("Bytes from site to site", "拠点間の転送量"),
    "assumptions": ("What this rests on", "前提"),
    # Methods
    "all sites": ("a swarm over all sites", "全拠点で一つのスウォーム"),
    "fewest": ("a swarm of the fastest machines", "保持できる最速の少数台"),
    "each site": ("a swarm in each site", "拠点ごとに独立したスウォーム"),
    "some sites": ("a swarm in {sites}", "{sites} のみのスウォーム"),
    "method all": ("{method} over all sites", "{method}、全拠点"),
    "method one": ("{method} in {site} alone", "{method}、{site} のみ"),
    "method alone": ("{method} on one machine", "{method}、1台のみ"),
    "method through": ("{method} through {where}", "{method} ({where})"),
    # Limits
    "limit compute": ("computing: {share:.0%} of a token's time", "計算: 1トークンの時間の {share:.0%}"),
    "limit way": (
        "the way: {share:.0%} of a token's time, {count} times between sites",
        "通信経路: 1トークンの時間の {share:.0%}、拠点間 {count} 回",
    ),
    "limit queue": (
        "waiting for other users: {share:.0%} of a token's time",
        "他の利用者の待ち: 1トークンの時間の {share:.0%}",
    ),
    "limit busy": ("computing: machines are busy {share:.0%} of the time", "計算: 各機の稼働率 {share:.0%}"),
    "limit link": (
        "the link between {one} and {other}: {used:.0%} full, machines compute {share:.0%} of the time",
        "{one}–{other} 間の回線: 使用率 {used:.0%}、計算の割合 {share:.0%}",
    ),
    "limit wait": (
        "waiting for each other: machines compute {share:.0%} of the time",
        "互いの待ち: 計算の割合 {share:.0%}",
    ),
    "limit trainer": ("the trainer: it makes steps {share:.0%} of the time", "学習側: 時間の {share:.0%} を更新に使用"),
    "limit sampling": ("sampling: workers sample {share:.0%} of the time", "生成側: 時間の {share:.0%} を生成に使用"),
    # Changes
    "change bandwidth": (
        "twice the bandwidth between {one} and {other}: {gain:+.0%} {what}",
        "{one}–{other} 間の帯域を2倍: {what} {gain:+.0%}",
    ),
    "change round trip": (
        "half the round trip between {one} and {other}: {gain:+.0%} {what}",
        "{one}–{other} 間の往復時間を半分: {what} {gain:+.0%}",
    ),
    "change machine": (
        "one more {device} in {site}: {gain:+.0%} {what}",
        "{site} に {device} を1台追加: {what} {gain:+.0%}",
    ),
    "change none": ("no single change tried gains 2 %", "試した単独の変更で 2 % 以上の効果はなし"),
    "not tried": ("", ""),
    # Confidence
    "measured": ("good: speeds were measured", "高: 速度は実測値"),
    "looked up": ("fair: speeds are looked up", "中: 速度は仕様値"),
    "worked out": ("fair: speeds are worked out from measured forward passes", "中: 順伝播の実測値から算出"),
    # Verdicts
    "met serve": (
        "Best: {method}: every user sees {rate:.3g} tokens/s ({wanted:g} wanted).",
        "最良: {method}。各利用者 {rate:.3g} トークン/秒 (目標 {wanted:g})。",
    ),
    "missed serve": (
        "No way that was tried meets the goal: the best, {method}, gives every user {rate:.3g} of the {wanted:g} "
        "tokens/s wanted, {short:.0%} short.",
        "目標を満たす方法はありません。最良の {method} で {rate:.3g} トークン/秒 (目標 {wanted:g}、{short:.0%} 不足)。",
    ),
    "best job": ("Best: {method}: done in {time}.", "最良: {method}。所要 {time}。"),
    "missed job": (
        "No way that was tried meets the goal: the best, {method}, takes {time}, and {days:g} days were wanted "
        "({more:.1f} times as long).",
        "目標を満たす方法はありません。最良の {method} で {time} (目標 {days:g} 日の {more:.1f} 倍)。",
    ),
    "left out": ("{method}: left out: {why}", "{method}: 対象外: {why}"),
    # Assumptions
    "simulated": (
        "Times and bytes are those of the shipping code in the simulator, over a short stretch; arithmetic is charged "
        "by the speeds above and nothing is computed.",
        "時間と転送量は実際のコードを短時間シミュレーションした値です。計算は上記の速度で課金され、実際の演算は行いません。",
    ),
    "no loss": (
        "How much a method learns from a token is not predicted: the table compares time, bytes and cost of equally "
        "many tokens.",
        "トークン当たりの学習効果は予測しません。同じトークン数での時間・転送量・費用を比べています。",
    ),
    "from swarm": (
        "Sites ({sites}), machines ({machines}) and links are those of the swarm {swarm}, as its nodes measured and "
        "announced them.",
        "拠点 ({sites})・計算機 ({machines} 台)・回線は、稼働中のスウォーム {swarm} の各機の計測と申告によります。",
    ),
    "model served": (
        "The model is the one that is served, {model}, taken as a Llama of {parameters:,.3g} M parameters.",
        "モデルは提供中の {model} で、{parameters:,.3g} M パラメータの Llama とみなしています。",
    ),
    "left aside": ("The file's {sections} are left aside.", "ファイルの {sections} は使いません。"),
    "silent machines": (
        "{count} machines do not tell their device and memory: those of a desktop are assumed.",
        "{count} 台は装置とメモリが不明のため、一般的な PC とみなしています。",
    ),
    "scaled speeds": (
        "{count} machines were measured with another model: their speeds are scaled by the size of a block.",
        "{count} 台は別のモデルでの実測値を、ブロックの大きさで換算しています。",
    ),
    "no site": (
        "{count} machines name no site and are taken to be near to each other.",
        "{count} 台は拠点名がないため、互いに近いとみなしています。",
    ),
    "assumed bandwidth": (
        "Nobody has measured the bandwidth of {links}: {value} is assumed.",
        "{links} の帯域は未計測のため、{value} と仮定しています。",
    ),
    "assumed round trip": (
        "Nobody has measured the round trip of {links}: {value} is assumed.",
        "{links} の往復時間は未計測のため、{value} と仮定しています。",
    ),
    "undisturbed": (
        "Nobody dies, links keep their rates, and all users write at the same time.",
        "故障なし、回線速度一定、全利用者が同時に利用する前提です。",
    ),
    "updates": (
        "A method with gradients is taken to need {updates:,} updates of {batch} examples of {length} tokens: "
        "goal.updates, or what goal.epochs makes of goal.examples.",
        "勾配を使う手法の更新回数は {updates:,} 回 (1回 {batch} 例、{length} トークン) と仮定しています"
        " (goal.updates、または goal.epochs と goal.examples から)。",
    ),
    "forwards": (
        "A method without gradients (onebyte, mezo) is taken to need {forwards} forward passes for each of them, so "
        "{measurements:,} measurements in all: 10 to 100 are published, and goal.forwards_per_update says otherwise.",
        "勾配を使わない手法 (onebyte、mezo) は更新1回につき順伝播 {forwards} 回、合計 {measurements:,} 回の測定が必要と"
        "仮定しています。公表値は 10～100 回で、goal.forwards_per_update で変えられます。",
    ),
    "quality": (
        "How good the tuned model gets is not predicted: of equally many updates one method makes more than another, "
        "and LoRA changes less than all weights can.",
        "調整後のモデルの品質は予測しません。同じ更新回数でも手法により成果は異なり、"
        "LoRA は全重みの更新より表現力が限られます。",
    ),
    "answers": (
        "{updates:,} updates of {answers} answers, all of {length} tokens, are what is counted; how much reward they "
        "gain, and what staleness costs of it, is not predicted.",
        "{updates:,} 回の更新 (1回 {answers} 回答、各 {length} トークン) の時間・転送量・費用です。"
        "報酬の伸びと、古い重みによる損失は予測しません。",
    ),
    "weights synced": (
        "Weights travel in bfloat16 ({size} whole), and {share:.1%} of them are taken to change with an update: "
        "goal.changed_share says otherwise.",
        "重みは bfloat16 で転送し (全体 {size})、更新ごとに {share:.1%} が変わると仮定しています"
        " (goal.changed_share)。",
    ),
    "adapter synced": (
        "Only a LoRA adapter of rank {rank} travels ({size} in float32, all of which changes with an update).",
        "ランク {rank} の LoRA アダプタのみを転送します (float32 で {size}、更新ごとに全体が変化)。",
    ),
}
