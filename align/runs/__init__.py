"""One run of a stage, from its command line to its last checkpoint: what no trainer and no stage has for itself.

How a process starts and ends (`launch`, `arguments`, `interrupt`), what it shows and logs (`progress`, `metrics`,
`callbacks`), what it goes on from (`checkpoint`, `acceptance`, `reading`, `seeding`), that it trains (`proof`), and
what it left (`run_files`).
"""
