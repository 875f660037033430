"""Titles, axis labels, legends and captions in English and Chinese. Tables and terminal output stay English."""

from __future__ import annotations

from bblab.errors import BblabError, near

_EN = {
    "latency_cpu": "CPU time of the backbone",
    "latency_wall": "Latency of the backbone",
    "macs": "MACs",
    "params": "Parameters",
    "activations": "Activations",
    "accuracy": "Accuracy",
    "fps": "frames per second, backbone alone",
    "own": "own pretraining",
    "recorded": "recorded run",
    "published": "published",
    "front": "front",
    "deploy": "deploy form (fused)",
    "train": "train form (unfused)",
    "probability": "probability of being on the front",
    "probability_short": "P(on the front)",
    "measure_next": "measure again next",
    "budget": "budget, {budget}",
    "level": "not told apart from the front",
    "over_budget": "over the budget",
    "area": "area: {low} to {high} parameters",
    "pareto_title": "{scale} against {x}",
    "pareto_caption": "{scale} against {x} of {count} nets; {place}.",
    "caption_latency": " Milliseconds are the ratio to {reference} times its {reference_ms} ms (median of {sessions}"
    " session(s)); bars are 95 % intervals over processes and seeds.",
    "caption_count": " At {size}; backbone as far as the last tap, deploy form. Bars are 95 % intervals.",
    "caption_front": " Colour is the probability of being on the front ({draws} bootstrap draws).",
    "caption_ties": " Not told apart: {ties}.",
    "next": "Measure next: {name} ({what}). Knowing it would settle {settled} of {open} open places on the front.",
    "next_x": "its latency again",
    "next_y": "its accuracy again, with another seed",
    "settled_front": "The front is settled: no single measurement would change it.",
    "thinned": "{hidden} of {all} points, off the front, are not drawn.",
    "stage": "stage",
    "share": "share of the net",
    "receptive_field": "Receptive field",
    "erf_title": "Effective receptive field of the last tap's central unit",
    "rf_title": "Receptive field along the net",
    "diagram_title": "Stages",
    "cost_title": "Cost by stage",
    "template": "template",
    "theory": "exact extent",
    "holds": "holds {share} of the gradient",
    "epoch": "Epoch",
    "loss": "Training loss",
    "accuracy_top1": "Validation top-1",
    "curves_title": "{what} over epochs",
    "time": "Date (UTC)",
    "ratio": "Time over {reference}",
    "device_title": "{device} over time: {place}",
    "reference": "reference",
    "shown_front": "front of the points shown",
    "gradient": "gradient, of its largest value",
}
_ZH = {
    "latency_cpu": "骨干网络 CPU 时间",
    "latency_wall": "骨干网络延迟",
    "macs": "乘加次数 (MACs)",
    "params": "参数量",
    "activations": "激活量",
    "accuracy": "精度",
    "fps": "帧率（仅骨干网络）",
    "own": "本实验室预训练",
    "recorded": "外部训练记录",
    "published": "已发表",
    "front": "帕累托前沿",
    "deploy": "部署形式（已融合）",
    "train": "训练形式（未融合）",
    "probability": "位于前沿的概率",
    "probability_short": "位于前沿的概率",
    "measure_next": "建议重测",
    "budget": "预算 {budget}",
    "level": "与前沿无法区分",
    "over_budget": "超出预算",
    "area": "面积：参数量 {low} 至 {high}",
    "pareto_title": "{scale} 与{x}",
    "pareto_caption": "{count} 个网络的{scale}与{x}；{place}。",
    "caption_latency": "毫秒数 = 相对 {reference} 的比值 × 其 {reference_ms} ms（{sessions} 次测量的中位数）；"
    "误差线为跨进程与随机种子的 95 % 区间。",
    "caption_count": "输入 {size}；骨干网络至最后一个输出层，部署形式。误差线为 95 % 区间。",
    "caption_front": "颜色表示位于前沿的概率（{draws} 次自助抽样）。",
    "caption_ties": "无法区分：{ties}。",
    "next": "建议下一步测量：{name}（{what}）。可确定前沿上 {open} 个未定名额中的 {settled} 个。",
    "next_x": "重测延迟",
    "next_y": "换随机种子重测精度",
    "settled_front": "前沿已确定：任何一次单独测量都不会改变它。",
    "thinned": "共 {all} 个点，其中 {hidden} 个不在前沿的点未绘出。",
    "stage": "阶段",
    "share": "占全网比例",
    "receptive_field": "感受野",
    "erf_title": "最后输出层中心单元的有效感受野",
    "rf_title": "感受野的增长",
    "diagram_title": "网络阶段",
    "cost_title": "各阶段开销",
    "template": "模板",
    "theory": "理论范围",
    "holds": "包含 {share} 的梯度",
    "epoch": "轮次",
    "loss": "训练损失",
    "accuracy_top1": "验证集 top-1",
    "curves_title": "{what}随轮次变化",
    "time": "日期 (UTC)",
    "ratio": "相对 {reference} 的时间",
    "device_title": "{device} 的历次测量：{place}",
    "reference": "参照",
    "shown_front": "所示各点的前沿",
    "gradient": "梯度（相对最大值）",
}
LANGUAGES = {"en": _EN, "zh": _ZH}


class Words:
    """`say("budget", budget="10 ms")` in one language."""

    def __init__(self, lang: str) -> None:
        if lang not in LANGUAGES:
            raise BblabError(f"no language {lang!r}", hint=near(lang, LANGUAGES))
        self.lang = lang
        self._texts = LANGUAGES[lang]

    def __call__(self, key: str, **values: object) -> str:
        return self._texts[key].format(**values)
