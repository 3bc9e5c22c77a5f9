"""The reward card: a reward judged by the public benchmarks, from their files on disk.

`rows` reads what each benchmark publishes, `finding` knows the files of a folder by their shape, `formulas` are the
benchmarks' own, `benchmarks` says which formula is whose, `scoring` asks the reward, `card` puts everything together.
Everything but `scoring` is plain numbers, without torch.
"""
