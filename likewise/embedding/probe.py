"""The texts by whose vectors a model is known again."""

# Varied in language, length and kind, so that a wrong tokenizer, pooling or weight shows in at least one of them.
# They are part of every stored generation: never change one.
PROBE_TEXTS: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog.",
    "error",
    "How do I reset my password if I no longer have access to my e-mail address?",
    "def mean(values):\n    return sum(values) / len(values)",
    "Der Zug nach Zürich fährt heute fünfzehn Minuten später ab.",
    "2024-03-01T12:00:00Z WARN payment-service timeout after 3000 ms, retrying (attempt 2 of 5)",
    "今日は天気がいいので、公園を散歩しました。",
    (
        "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. It takes place in the "
        "chloroplasts of plants and algae, and it is the source of nearly all energy in food chains."
    ),
)
