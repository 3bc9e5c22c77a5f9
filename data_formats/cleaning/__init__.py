"""Cleaning records: steps that drop, repair or note, each counted by reason, over any iterable of records."""

from data_formats.cleaning.batches import BatchCleaner, steps_alone, write_batches
from data_formats.cleaning.characters import InvisibleCharacters, LoneSurrogates, NulBytes, ReplacementCharacters
from data_formats.cleaning.cleaner import Cleaner
from data_formats.cleaning.contamination import Decontamination
from data_formats.cleaning.documents import C4, Gopher
from data_formats.cleaning.exact import ExactDuplicates
from data_formats.cleaning.language import Languages
from data_formats.cleaning.length import Length
from data_formats.cleaning.machine_made import MachineMade
from data_formats.cleaning.manner import Apologies, Emoji, Exclamations
from data_formats.cleaning.near import NearDuplicates, NearIndex
from data_formats.cleaning.perplexity import Perplexity
from data_formats.cleaning.pii import PII
from data_formats.cleaning.repetition import Repetition
from data_formats.cleaning.report import HEADER, CleaningReport, StepReport
from data_formats.cleaning.steps import BatchedStep, CleaningStep, Finding
from data_formats.cleaning.toxicity import Toxicity, WordList
from data_formats.cleaning.turn_order import ControlTokens, EmptyReplies, MismatchedRoles

__all__ = [
    "C4",
    "HEADER",
    "PII",
    "Apologies",
    "BatchCleaner",
    "BatchedStep",
    "Cleaner",
    "CleaningReport",
    "CleaningStep",
    "ControlTokens",
    "Decontamination",
    "Emoji",
    "EmptyReplies",
    "ExactDuplicates",
    "Exclamations",
    "Finding",
    "Gopher",
    "InvisibleCharacters",
    "Languages",
    "Length",
    "LoneSurrogates",
    "MachineMade",
    "MismatchedRoles",
    "NearDuplicates",
    "NearIndex",
    "NulBytes",
    "Perplexity",
    "Repetition",
    "ReplacementCharacters",
    "StepReport",
    "Toxicity",
    "WordList",
    "steps_alone",
    "write_batches",
]
