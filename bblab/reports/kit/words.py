"""All that a report says, in English and Chinese: titles, captions, notes, tables. Names and units are nobody's words.

Messages of design rules are printed as they are stored, in English.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bblab.errors import BblabError, near

if TYPE_CHECKING:
    from bblab.reports import Column
    from bblab.reports.kit.stored import Setting

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
    "level": "not told apart\nfrom the front",
    "all_over": "all are over the {budget}",
    "all_within": "all are within the {budget}",
    "area": "area: {low} to {high} parameters",
    "pareto_title": "{scale} against {x}",
    "pareto_caption": "{scale} against {x} of {nets}; {place}.",
    "caption_latency": " Milliseconds are the ratio to {reference} times its {reference_ms} ms (median of {sessions});"
    " bars are 95 % intervals over processes and seeds.",
    "caption_count": " Backbone as far as the last tap, deploy form.",
    "caption_front": " Colour is the probability of being on the front ({draws} draws).",
    "caption_ties": " Not told apart: {ties}.",
    "next": "Measure next: {name} ({what}). Knowing it would settle {settled} of {open} open places on the front.",
    "next_x": "its latency again",
    "next_y": "its accuracy again, with another seed",
    "gap_x": "Measure next: {name}, its {number}. Its accuracy is known; until both are, the front is not settled.",
    "gap_y": "Measure next: {name}, its accuracy ({scale}). Its {number} is known; until both are, the front is not"
    " settled.",
    "gap_more": " One of the two is missing of {names} too.",
    "latency_unfused": "latency in deploy form (it is timed unfused)",
    "latency_beside": "latency beside {reference} (it is timed beside another reference)",
    "latency_word": "latency",
    "macs_word": "number of MACs",
    "params_word": "number of parameters",
    "activations_word": "number of activations",
    "again": "Of those shown: {text}",
    "ties_open": "The front is not settled: {ties} cannot be told apart, and no single measurement would tell them.",
    "still_open": "The front is not settled ({open} open places), and no single measurement would settle it.",
    "settled_front": "The front is settled: no single measurement would change it.",
    "settled_but": "The front is settled only if the numbers of {names} are exact: their spread is not known.",
    "settled_fronts": "Each of the {count} fronts is settled among its own points. A front is one of a recipe, and"
    " accuracies of different recipes are not compared.",
    "each_front": " A front is one of a recipe; accuracies of different recipes are not compared.",
    "no_intervals": "No interval of these numbers is known: the front is that of the values as given.",
    "apart_title": "apart: not on a chart",
    "trackers_title": "published trackers, whole, on their own devices",
    "apart_stranger": "timed, but not beside {reference}",
    "apart_reference": "no common reference: {command}",
    "apart_no_cost": "no {what}: {command}",
    "apart_not_a_number": "its accuracy is not a number (run {run})",
    "apart_published": "a published accuracy only: --with-published",
    "apart_other_scale": "no {here}; what is known of it is {others} ({command})",
    "apart_unfinished": "no accuracy: its training (run {run}) did not run to its end",
    "apart_no_accuracy": "no accuracy",
    "run_n": "run {run}",
    "thinned": "{hidden} of {all} points, off the front, are not drawn.",
    "stage": "stage",
    "share": "share of the net",
    "receptive_field": "receptive field",
    "time_title": "time by row of the spec",
    "time_of_row": "median time, share of the net",
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
    "earlier": "earlier runs ({count})",
    "gradient": "√ gradient / largest",
    "click": "Click a point or a row: its spec, its findings, and the runs behind it.",
    "notes": "Notes",
    "area_word": "area: parameters",
    "ui_axis": "cost",
    "ui_scale": "accuracy",
    "ui_device": "device",
    "ui_machine": "processor",
    "ui_runtime": "runtime",
    "ui_precision": "precision",
    "ui_threads": "threads",
    "ui_input": "input",
    "ui_state": "state",
    "ui_pace": "pace",
    "ui_search": "name",
    "ui_family": "family",
    "ui_form": "form",
    "ui_kind": "accuracy from",
    "ui_shown": "{n} of {all} points shown; the front is that of the points shown, P(front) that of all.",
    "ui_probability": "P(front)",
    "ui_unfused": "unfused: not what a device runs",
    "ui_params": "parameters",
    "ui_findings": "Findings",
    "ui_no_findings": "none, or not profiled",
    "ui_waived": "waived",
    "ui_spec": "Spec",
    "ui_deploy": "deploy",
    "ui_train": "train",
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
    "all_over": "全部超出{budget}",
    "all_within": "全部在{budget}之内",
    "area": "面积：参数量 {low} 至 {high}",
    "pareto_title": "{scale} 与{x}",
    "pareto_caption": "{nets} 个网络的 {scale} 与{x}；{place}。",
    "caption_latency": "毫秒数 = 相对 {reference} 的比值 × 其 {reference_ms} ms（{sessions} 次测量的中位数）；"
    "误差线为跨进程与随机种子的 95 % 区间。",
    "caption_count": "骨干网络至最后一个输出层，部署形式。",
    "caption_front": "颜色表示位于前沿的概率（{draws} 次抽样）。",
    "caption_ties": "无法区分：{ties}。",
    "next": "建议下一步测量：{name}（{what}）。可确定前沿上 {open} 个未定名额中的 {settled} 个。",
    "next_x": "重测延迟",
    "next_y": "换随机种子重测精度",
    "gap_x": "建议下一步测量：{name} 的{number}。其精度已知；两者都已知之前，前沿尚未确定。",
    "gap_y": "建议下一步测量：{name} 的精度（{scale}）。其{number}已知；两者都已知之前，前沿尚未确定。",
    "gap_more": "另外缺少两者之一的还有：{names}。",
    "latency_unfused": "部署形式延迟（目前只测了未融合形式）",
    "latency_beside": "相对 {reference} 的延迟（目前相对另一参照测量）",
    "latency_word": "延迟",
    "macs_word": "乘加次数",
    "params_word": "参数量",
    "activations_word": "激活量",
    "again": "就图中各点而言：{text}",
    "ties_open": "前沿尚未确定：{ties} 无法区分，任何一次单独测量也不能区分它们。",
    "still_open": "前沿尚未确定（{open} 个未定名额），任何一次单独测量都不能确定它。",
    "settled_but": "仅当 {names} 的数值确实精确时，前沿才已确定：其离散程度未知。",
    "settled_fronts": "{count} 条前沿在各自的点之间均已确定。每种训练方案各有一条前沿；不同方案的精度不作比较。",
    "each_front": "每种训练方案各有一条前沿；不同方案的精度不作比较。",
    "apart_title": "未绘入图中的网络",
    "trackers_title": "已发表的完整跟踪器（各自设备上的结果）",
    "apart_stranger": "已测时，但参照不是 {reference}",
    "apart_reference": "没有共同的参照：{command}",
    "apart_no_cost": "没有{what}：{command}",
    "apart_not_a_number": "其精度不是数值（记录 {run}）",
    "apart_published": "只有已发表的精度：--with-published",
    "apart_other_scale": "没有 {here}；已知的是 {others}（{command}）",
    "apart_unfinished": "没有精度：其训练（记录 {run}）未完成",
    "apart_no_accuracy": "没有精度",
    "run_n": "记录 {run}",
    "settled_front": "前沿已确定：任何一次单独测量都不会改变它。",
    "no_intervals": "这些数值没有已知区间：前沿按给定数值计算。",
    "thinned": "共 {all} 个点，其中 {hidden} 个不在前沿的点未绘出。",
    "stage": "阶段",
    "share": "占全网比例",
    "receptive_field": "感受野",
    "time_title": "各部分耗时",
    "time_of_row": "时间中位数与占比",
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
    "curves_title": "{what} 随轮次变化",
    "time": "日期 (UTC)",
    "ratio": "相对 {reference} 的时间",
    "device_title": "{device} 的历次测量：{place}",
    "reference": "参照",
    "shown_front": "所示各点的前沿",
    "earlier": "较早的训练（{count} 次）",
    "gradient": "√(梯度 / 最大值)",
    "click": "点击一个点或一行：查看其结构、检查结果及数据来源。",
    "notes": "说明",
    "area_word": "面积：参数量",
    "ui_axis": "开销",
    "ui_scale": "精度",
    "ui_device": "设备",
    "ui_machine": "处理器",
    "ui_runtime": "推理框架",
    "ui_precision": "数值精度",
    "ui_threads": "线程",
    "ui_input": "输入",
    "ui_state": "状态",
    "ui_pace": "节奏",
    "ui_search": "名称",
    "ui_family": "系列",
    "ui_form": "形式",
    "ui_kind": "精度来源",
    "ui_shown": "显示 {all} 个点中的 {n} 个；前沿按所示各点计算，概率按全部点计算。",
    "ui_probability": "前沿概率",
    "ui_unfused": "未融合：并非设备实际运行的形式",
    "ui_params": "参数量",
    "ui_findings": "检查结果",
    "ui_no_findings": "无，或尚未分析",
    "ui_waived": "已豁免",
    "ui_spec": "结构",
    "ui_deploy": "部署",
    "ui_train": "训练",
}
# Words and short sentences of tables and notes, by their English text.
_ZH_TEXTS = {
    # columns, their units, and cells
    "chart": "图",
    "net": "网络",
    "form": "形式",
    "accuracy": "精度",
    "cost": "开销",
    "latency": "延迟",
    "params": "参数量",
    "activations": "激活量",
    "front": "前沿",
    "from": "来源",
    "own": "自有",
    "recorded": "记录",
    "published": "已发表",
    "level with it": "与前沿无法区分",
    "P(front)": "前沿概率",
    ": ": "：",
    "deploy": "部署",
    "train": "训练",
    "what is known": "已知",
    "what is missing": "缺少",
    "tracker": "跟踪器",
    "score": "指标",
    "value": "数值",
    "M, whole tracker": "M，整个跟踪器",
    "speed and its device": "速度及其设备",
    "spec": "结构",
    "M, deploy": "M，部署",
    "M, train": "M，训练",
    "× params": "× 参数量",
    "elem.": "逐元素",
    "RF": "感受野",
    "RF/z": "感受野/模板",
    "template": "模板",
    "search": "搜索区",
    "px→map": "px→特征图",
    "score map": "响应图",
    "broken": "违反规则",
    "× reference, 95 %": "× 参照，95 %",
    "time": "时间",
    "not told apart from": "无法区分于",
    "run": "记录",
    "runs": "记录",
    "the reference": "参照",
    "severity": "级别",
    "rule": "规则",
    "where": "位置",
    "finding": "检查结果",
    "waived": "豁免",
    "error": "错误",
    "warning": "警告",
    "note": "提示",
    "when": "时间",
    "UTC": "UTC",
    "recipe or trainer": "训练方案或训练器",
    "data": "数据",
    "seed": "随机种子",
    "epochs": "轮次",
    "last loss": "最终损失",
    "lowest": "最低损失",
    "last epoch": "最后一轮",
    "top-1": "top-1",
    "reference": "参照",
    "conditions": "运行条件",
    "stage": "阶段",
    "map": "特征图",
    "stride": "步长",
    "elementwise": "逐元素",
    "traffic": "访存",
    "memory traffic": "访存量",
    "parameters": "参数量",
    "tap": "输出",
    "measured on": "测量环境",
    "yes": "是",
    "no": "否",
    # where a number is from
    "setting": "环境",
    "accuracy from": "精度来源",
    "latency runs": "延迟记录",
    "measured": "测量时间",
    "counted": "计数",
    "not steady": "不稳定",
    "steady": "稳定",
    "computed for this report": "为本报告计算",
    "profile run {run}": "分析记录 {run}",
    "run {ids}: recorded": "记录 {ids}：外部训练",
    "runs {ids}: recorded": "记录 {ids}：外部训练",
    "run {ids}: {protocol}": "记录 {ids}：{protocol}",
    "runs {ids}: {protocol}": "记录 {ids}：{protocol}",
    ", seed {seeds}": "，随机种子 {seeds}",
    ", seeds {seeds}": "，随机种子 {seeds}",
    "published: {source}": "已发表：{source}",
    "load": "负载",
    "governor": "调频策略",
    "battery": "电池",
    "hottest zone {first} → {last} °C": "最热处 {first} → {last} °C",
    "machine busy": "机器繁忙",
    "machine free": "机器空闲",
    "warm": "热态",
    "cold": "冷态",
    "paced": "按节奏",
    "protocol 1 (cold, mixed)": "测量规程 1（冷态、混合）",
    "apart: measured by an older protocol, comparable with none of the above":
        "另列：按旧规程测得，与以上均不可比",
    "measure again": "重新测量",
    "measured again": "已重新测量",
    "timed in one process": "只在一个进程中测过",
    "no interval: {command}": "没有区间：{command}",
    "any size": "任意尺寸",
    "{count} thread": "{count} 线程",
    "{count} threads": "{count} 线程",
    "paced at {fps} fps": "按 {fps} fps 节奏",
    "batch {count}": "批量 {count}",
    # notes
    "chart {number}: ": "图 {number}：",
    "taken as exact, for no interval is known: accuracy of {names}": "以下精度没有已知区间，按精确值处理：{names}",
    "taken as exact, for no interval is known: latency of {names}": "以下延迟没有已知区间，按精确值处理：{names}",
    "published accuracies are as printed, without an interval": "已发表的精度按原文给出，没有区间",
    "lines are published trackers on their own devices: accuracy only": "横线为已发表跟踪器（各自设备），只有精度",
    "published trackers are on other scales: --accuracy with one of {known}":
        "已发表的跟踪器使用其他指标：--accuracy 取 {known} 之一",
    "no accuracy of your own is stored: these are published ones (bblab pretrain, bblab record)":
        "没有自有的精度：这些是已发表的（bblab pretrain，bblab record）",
    " and {count} more": " 等另外 {count} 个",
    "deploy form as far as the last tap; MACs at search size, elements written elementwise at the input size":
        "部署形式，至最后一个输出层；MACs 按搜索区尺寸，逐元素写入量按输入尺寸",
    "+ squeeze-excitation or attention also sees the whole map": "+ 另有 SE 或注意力机制可见整个特征图",
    "no latency is stored of {names}": "没有延迟记录：{names}",
    "latency: {setting}": "延迟：{setting}",
    "findings that are not waived": "未豁免的检查结果",
    "{setting}: {nets} with fewer sessions in the table only": "{setting}：{nets} 个测量较少的网络只列于表中",
    "{busy} of {all} timings were taken on a busy machine: no wall times of them":
        "{all} 次测时中有 {busy} 次机器繁忙：这些不给出墙钟时间",
    "{count} more specs were asked for: the first six are shown": "另有 {count} 个网络未显示：只显示前六个",
    "no effective receptive field where the net is not built on this machine": "本机未构建的网络没有有效感受野",
    "run {run}: {setting}": "记录 {run}：{setting}",
    "; the {shown} costliest of {all} rows": "；{all} 部分中开销最大的 {shown} 部分",
    "; by sort: {sorts}": "；按算子类别：{sorts}",
    "{name}: latency": "{name}：延迟",
    "{name}: findings": "{name}：检查结果",
    "absolute gradient of the central unit of the last tap, {images} images of noise, random weights, deploy form; "
    "square root of the share of the largest (Luo et al. 2016, arXiv:1701.04128)":
        "最后输出层中心单元的绝对梯度：{images} 幅噪声图像、随机权重、部署形式；取与最大值之比的平方根"
        "（Luo et al. 2016，arXiv:1701.04128）",
    "… {count} more": "… 另 {count} 条",
    "{name} (run {run}{seed})": "{name}（记录 {run}{seed}）",
    # what the lab says of its rows
    "{count} stored run": "{count} 条记录",
    "{count} stored runs": "{count} 条记录",
    "{first} to {last}": "{first} 至 {last}",
    "selected: {select}": "筛选：{select}",
    "since {since}": "自 {since} 起",
    "{recipe}, {epochs} epoch at {px} px": "{recipe}，{epochs} 轮，{px} px",
    "{recipe}, {epochs} epochs at {px} px": "{recipe}，{epochs} 轮，{px} px",
    ", from weights": "，由权重初始化",
    "epoch {epoch}": "第 {epoch} 轮",
    "best of {count} recorded checkpoints": "{count} 个已记录检查点中的最佳",
    "of the whole {name}, this is a cut of it": "此为整个 {name} 的数值，本网络只是其一部分",
    "other": "其他",
    "digits": "手写数字",
    "parameters and MACs of {nets} are not known here: bblab profile SPEC stores them":
        "{nets} 个网络的参数量与 MACs 在此未知：bblab profile SPEC 可存入",
    "{count} stored value of {metric} is of a speed or a cost, not of an accuracy: on no chart":
        "{metric} 的 {count} 个数值属于速度或开销，不是精度：不绘入图中",
    "{count} stored values of {metric} are of a speed or a cost, not of an accuracy: on no chart":
        "{metric} 的 {count} 个数值属于速度或开销，不是精度：不绘入图中",
    "{count} stored score of {metric} is on no chart, as nobody said which way is better: record it as "
    "{metric}:higher=VALUE or {metric}:lower=VALUE":
        "{metric} 的 {count} 个数值未注明方向，不绘入图中：请记录为 {metric}:higher=VALUE 或 {metric}:lower=VALUE",
    "{count} stored scores of {metric} are on no chart, as nobody said which way is better: record them as "
    "{metric}:higher=VALUE or {metric}:lower=VALUE":
        "{metric} 的 {count} 个数值未注明方向，不绘入图中：请记录为 {metric}:higher=VALUE 或 {metric}:lower=VALUE",
    # the page and the terminal
    "{count} more row in the CSV file": "其余 {count} 行见 CSV 文件",
    "{count} more rows in the CSV file": "其余 {count} 行见 CSV 文件",
    "{count} more row in the Markdown file": "其余 {count} 行见 Markdown 文件",
    "{count} more rows in the Markdown file": "其余 {count} 行见 Markdown 文件",
    "The charts need JavaScript; the tables below do not.": "图表需要 JavaScript；下方表格不需要。",
    "written {page} and beside it {others}": "已写入 {page}，同处还有 {others}",
    "next: {command}": "下一步：{command}",
    "… {count} more charts in the page; --select shows fewer": "… 页面中另有 {count} 幅图；--select 可减少",
    "bblab pretrain SPEC or bblab record SPEC, for an accuracy":
        "bblab pretrain SPEC 或 bblab record SPEC（以获得精度）",
    "This page could not be drawn: {error}. A browser from 2023 or later is needed.":
        "无法绘制本页：{error}。需要 2023 年以后的浏览器。",
    "Save as SVG": "存为 SVG",
    "Save as PNG": "存为 PNG",
    "Click to view actions": "点击查看操作",
    "pareto": "帕累托",
    "comparison": "对比",
    "spec_card": "结构卡片",
    "device": "设备",
}  # fmt: skip
LANGUAGES = {"en": _EN, "zh": _ZH}
_TEXTS: dict[str, dict[str, str]] = {"en": {}, "zh": _ZH_TEXTS}


class Words:
    """`say("budget", budget="10 ms")` in one language; `say.t("{count} runs", count=3)` by the English text."""

    def __init__(self, lang: str) -> None:
        if lang not in LANGUAGES:
            raise BblabError(f"no language {lang!r}", hint=near(lang, LANGUAGES))
        self.lang = lang
        self._texts = LANGUAGES[lang]
        self._by_english = _TEXTS[lang]

    def many(self, thing: str, count: int) -> str:
        """ "1 session", "3 sessions"; a plain number in Chinese."""
        return str(count) if self.lang == "zh" else f"{count} {thing}{'s' * (count != 1)}"

    def has(self, key: str) -> bool:
        return key in self._texts

    def t(self, text: str, **values: object) -> str:
        """An English text in this language; itself where it has no other (names, units)."""
        text = self._by_english.get(text, text)
        return text.format(**values) if values else text

    def counted(self, text: str, count: int, **values: object) -> str:
        """`t` of "{count} thread" or "{count} threads", as the count wants."""
        return self.t(text if count == 1 else f"{text}s", count=count, **values)

    def and_more(self, count: int) -> str:
        return self.t(" and {count} more", count=count)

    def join(self, *parts: str) -> str:
        """Parts of one sentence with this language's comma."""
        return ("，" if self.lang == "zh" else ", ").join(p for p in parts if p)

    def columns(self, columns: Sequence[Column]) -> tuple[Column, ...]:
        """A table's columns with their titles and units in this language; keys, which CSV has, stay."""
        from dataclasses import replace

        return tuple(replace(c, title=self.t(c.title), unit=self.t(c.unit)) for c in columns)

    def setting(self, s: Setting) -> str:
        """A setting's title: device, runtime, precision, threads, input."""
        where = f"{s.device} ({s.machine})" if s.machine else s.device  # neither where the title names them
        threads = self.counted("{count} thread", s.threads)
        batch = "" if s.batch == 1 else self.t("batch {count}", count=s.batch)
        state = self.t("protocol 1 (cold, mixed)" if s.protocol == 1 else s.state)
        pace = state if s.pace_fps is None else self.t("paced at {fps} fps", fps=f"{s.pace_fps:g}")
        runtime = f"{s.runtime} {s.runtime_version}"
        return self.join(where, runtime, s.precision, threads, "×".join(map(str, s.input)), batch, pace)

    def __call__(self, key: str, **values: object) -> str:
        text = self._texts[key]
        return text.format(**values) if values else text
