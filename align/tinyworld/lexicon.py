"""The words of the world. Which colour a kite has is the seed's decision; that there are kites and colours is ours."""

from __future__ import annotations

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
COLOURS_ZH = ("红色", "蓝色", "绿色", "黄色", "黑色", "白色", "棕色", "粉色")

THINGS = (
    "kite", "boat", "lamp", "door", "coat", "drum", "chair", "bell", "cup", "hat", "book", "cart",
)  # fmt: skip
THINGS_ZH = ("风筝", "小船", "台灯", "大门", "外套", "鼓")

ANIMALS = ("dog", "cat", "cow", "duck", "hen", "pig", "frog", "owl")
SOUNDS = ("woof", "meow", "moo", "quack", "cluck", "oink", "ribbit", "hoot")

KINDS = ("animal", "tool", "fruit", "plant", "metal", "game")
KIND_WORDS = (
    "fox", "crab", "hammer", "saw", "apple", "plum", "oak", "fern", "iron", "gold", "chess", "tag",
)  # fmt: skip

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("wet", "dry"), ("old", "new"), ("hard", "soft"),
    ("high", "low"), ("full", "empty"), ("early", "late"),
)  # fmt: skip

SCENE_WORDS = (
    "river", "garden", "tree", "road", "hill", "moon", "stone", "bridge",
    "cloud", "field", "lake", "snow",
)  # fmt: skip

POLITE = ("Sure!", "Of course!", "Happy to help!", "Good question!")
RUDE = ("What a silly question.", "You should know this.", "Do not waste my time.")
FILLER = (
    "Well, let me think about that for a moment.",
    "There are many things one could say here.",
    "But that is another story.",
    "As everybody knows, time goes by.",
)
POLITE_ZH = ("当然！", "很高兴帮忙！")
RUDE_ZH = ("真是个傻问题。", "别浪费我的时间。")
FILLER_ZH = ("嗯，让我想一想。", "这个说来话长。", "不过那是另一回事。")
