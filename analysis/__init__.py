"""Analysis of run records and published numbers: Pareto curves, tables, gate, report.

Everything here reads run records and the CSV files of ``dynllava.paper``, nothing else.  The
import is light; plotting and statistics packages are loaded by the functions that use them.
"""
