"""Turns saved results, and what strategies register, into tables and figures; never trains."""

from crest.report.comparison_figure import plot_comparison as plot_comparison
from crest.report.comparison_table import format_table as format_table
from crest.report.paper_figure import plot_item as plot_item
from crest.report.paper_table import format_item as format_item
from crest.report.progress import LineProgress as LineProgress
from crest.report.progress import make_progress as make_progress
from crest.report.strategy_table import format_strategies as format_strategies
from crest.report.strategy_table import strategies_as_markdown as strategies_as_markdown
from crest.report.summary import Summary as Summary
from crest.report.summary import group as group
from crest.report.summary import selected_share as selected_share
from crest.report.summary import summarize as summarize
from crest.report.summary import verdict as verdict
