"""Made tests/embedding/reference.npz: what sentence-transformers makes of 312 texts, in fp32 on a CPU.

    python -m benchmarks.reference_vectors FOLDER_OF_ALL_MINILM_L6_V2

needs `torch` and `sentence-transformers`. The texts are our own: written for this, or put together from word lists by
a seeded generator. The file has `texts` (JSON, UTF-8), `vectors` float16 (n, 384), and `lengths` int32 (n,): tokens by
the Hugging Face tokenizer with special ones and before anything is cut off.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parent.parent / "tests" / "embedding" / "reference.npz"
SEED = 20_240_501

SENTENCES = """
The harbour was quiet except for a gull that had found half a sandwich.
Please confirm the delivery address before Thursday noon.
A convex function has no local minimum that is not global.
Bread dough rises faster in a warm kitchen, but it tastes better when it had a cold night.
The committee postponed the vote because two members were ill.
My neighbour's dog barks whenever somebody practises the trombone.
Interest rates fell by a quarter of a percentage point.
Do not store acids and cyanides in the same cupboard.
The second violin came in a bar too early, and nobody minded.
How many passengers fit into one carriage of the night train?
Why does my bicycle chain fall off when I change down?
What is the difference between a lease and a licence?
Who wrote the first textbook on crystal growth?
Is it safe to drink rain water from a zinc roof?
Refund not received after three weeks, ticket number 48213.
I would rather have the aisle seat, if that is possible.
The service does not answer on port 8443 after the upgrade.
Connection reset by peer while reading the response header.
Out of memory: killed process 2217 (java).
The certificate expired yesterday at midnight.
Deadlock detected while updating the table of invoices.
Reading configuration from the default location.
Migration 0042 applied in 1.3 seconds.
Her lecture on mosses drew a larger crowd than the film.
Copper conducts heat about five times as well as iron.
The patient reports mild headaches in the early morning.
Two tablets a day, after a meal, for at most a week.
An otter can hold its breath for about eight minutes.
The moon was so bright that we could read the map.
He sold the orchard and bought a lighthouse.
""".strip().splitlines()

OTHER_LANGUAGES = """
Die Brücke über den Fluß wird im Frühjahr gesperrt.
Grüße aus Öhringen, schöne Straße, müde Füße.
Le château fort domine la vallée depuis neuf siècles.
L'été dernier, nous avons mangé des crêpes à Quimper.
¿Dónde está la estación de autobuses más cercana?
El niño comió una piña mañana por la mañana.
A manhã está fria e o coração também.
Nie rozumiem, dlaczego żółw śpi pod łóżkiem.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Kahvin jälkeen lähdetään yöjunalla pohjoiseen.
Þetta er ekki eins og það á að vera.
Bugün İstanbul'da hava ılık ve güneşli.
Ηλεκτρονικό εισιτήριο για το αυριανό πλοίο.
Поезд на Санкт-Петербург отправляется с третьего пути.
Їжак заліз під ґанок і заснув.
מחר בבוקר ניפגש ליד תחנת הרכבת.
שלום עולם 123 (בדיקה)
الطقس جميل اليوم في المدينة القديمة.
يُعَدُّ الكِتابُ خَيْرَ جَليسٍ
کتابخانه تا ساعت هشت باز است.
आज बाज़ार में आम सस्ते हैं।
நாளை மழை பெய்யும் என்று சொன்னார்கள்.
พรุ่งนี้เราจะไปตลาดน้ำกัน
昨日、駅前の本屋で古い地図を買いました。
カタカナとひらがなの混ざった文章です。
東京特許許可局
今天的会议改到下午三点半。
圖書館在河的另一邊。
내일 아침 일찍 산에 올라갈 거예요.
Hôm nay trời mưa suốt cả ngày.
Leo ni siku ya soko kijijini.
""".strip().splitlines()

CODE = [
    "def area(r):\n    return 3.14159 * r ** 2",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }",
    "SELECT name, count(*) FROM orders WHERE paid IS NOT TRUE GROUP BY name HAVING count(*) > 3;",
    "git rebase --onto main feature~3 feature",
    '{"level":"error","status":503,"path":"/v1/items?limit=50","ms":12.75}',
    '<div class="card"><p>Total: <b>42</b></p></div>',
    "let total: u64 = items.iter().map(|x| x.price as u64).sum();",
    "x = y if y is not None else {k: v for k, v in z.items() if v}",
    "Traceback (most recent call last):\n  File \"app.py\", line 7, in <module>\nKeyError: 'colour'",
    "https://example.org/a/very/long/path/with_underscores-and-dashes/file.tar.gz?token=abc123&x=%20",
    "[2024-05-01 12:00:03,217] WARN  o.e.j.server.HttpChannel - /login java.lang.IllegalStateException: null",
    "0x7ffd5e8c 0b1011 1e-9 3.0E+8 1_000_000 0o755",
    "^\\s*(?P<key>[A-Za-z_][\\w.-]*)\\s*=\\s*(.*?)\\s*$",
    "kubectl get pods -n billing -o json | jq '.items[].metadata.name'",
    "a&&b||!c?d:e;//comment/*block*/",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
]

ODD = [
    ".",
    "?",
    "!!!",
    "-",
    "a",
    "I",
    "0",
    "...",
    "()",
    "\u200b",
    "\xa0x\xa0",
    "\ufeffbyte order mark",
    "_",
    "  leading and trailing spaces   ",
    "tabs\tand\nnew lines\r\nand\x0bmore",
    "many      spaces      inside",
    "no-break\xa0spaces\u2009and\u3000wide ones",
    "zero\u200bwidth\u200dspaces\u2060inside",
    "soft\xadhyphen",
    "control\x00characters\x07inside\x1b[0m",
    "é decomposed and é composed",
    "ﬁrst ligature ﬂoor",
    "\uff26\uff35\uff2c\uff2c\u3000\uff37\uff29\uff24\uff34\uff28\u3000\uff11\uff12\uff13",
    "𝔣𝔯𝔞𝔨𝔱𝔲𝔯 and 𝒸𝓊𝓇𝓈𝒾𝓋ℯ",
    "x² + y² ≤ z² ∧ ∀ε>0 ∃δ: |f(x)−f(a)| < ε",
    "½ cup, 20 °C, 5 µm, 3 Å",
    "£5 €10 ¥500 ₹2000 ₿0.1",
    "“Curly quotes” – and — dashes… ‘too’",
    "«guillemets» ‹single›",
    "A.B.C. d.e.f. U.S.A.",
    "🙂",
    "🎉🎉🎉",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family",
    "🇯🇵🇫🇷 flags",
    "coffee ☕ then code 💻 then sleep 😴",
    "thumbs up 👍🏽 with a skin tone",
    "\u202eright to left override\u202c",
    "Z̸̧̛a̷͝l̵̈g̶o̴ text",
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "##ing ##ed",
    "don't can't won't it's",
    "state-of-the-art well-known twenty-first",
    "CamelCaseWord snake_case_word kebab-case-word SCREAMING_CASE",
    "MiXeD CaSe TeXt",
    "ALL CAPITALS HERE",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x" * 101,
    "x" * 100,
    "9" * 60,
    "antidisestablishmentarianism",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "Donaudampfschifffahrtsgesellschaft",
    "�� replacement",
    "𠮷野家 and 𠀋",
    "ｶﾀｶﾅ half width",
    "Ǆ ǅ ǆ ß ẞ ſ ŉ",
    "İ ı i I",
    "ΣΊΣΥΦΟΣ ς σ",
    "\U000e0041 tag",
    "private \ue000 use",
    "noncharacter \ufdd0 here",
    "1,234,567.89 and 1.234.567,89",
    "+49 (0)30 123456-78",
    "me@example.org",
]

WORDS = """
river stone window cable market silver engine letter winter garden copper signal thread mountain paper kettle harbour
invoice server packet buffer kernel branch ticket customer refund delivery balance account password session cluster
protein enzyme membrane neuron plasma crystal magnet voltage fibre lattice quick slow heavy bright narrow gentle broken
careful ancient modern open closed runs falls grows breaks returns waits carries forgets measures delivers explains
""".split()


def texts() -> list[str]:
    """All texts, the same ones each time."""
    rng = random.Random(SEED)
    made = [*SENTENCES, *OTHER_LANGUAGES, *CODE, *ODD, *_words(rng), *_paragraphs(rng), *_mixed(rng), *_long(rng)]
    return list(dict.fromkeys(made))


def _words(rng: random.Random) -> Iterator[str]:
    for word in rng.sample(WORDS, 40):
        yield rng.choice((word, word.capitalize(), word.upper(), word + "s", word + "?"))


def _paragraphs(rng: random.Random) -> Iterator[str]:
    for size in range(2, 42):
        yield " ".join(rng.choice(SENTENCES) for _ in range(1 + size // 6)) + " " + " ".join(rng.choices(WORDS, k=size))


def _mixed(rng: random.Random) -> Iterator[str]:
    for _ in range(60):
        parts = rng.sample((*SENTENCES, *OTHER_LANGUAGES, *CODE, *ODD), rng.randint(2, 4))
        yield rng.choice((" ", "\n", "\n\n", " | ", "\t")).join(parts)


def _long(rng: random.Random) -> Iterator[str]:
    """Around and above the limit of 256 tokens."""
    for size in (*range(236, 266, 2), 300, 400, 511, 513, 800, 1_500, 4_000):
        yield " ".join(rng.choices(WORDS, k=size))
    for repeats in (3, 6, 12):
        yield "\n".join(rng.choices(OTHER_LANGUAGES, k=8 * repeats))
        yield "\n\n".join(rng.choices(CODE, k=4 * repeats))
    yield "山川海空" * 100
    yield "word " * 254
    yield "word " * 255


def main(folder: str) -> None:
    """Make the file."""
    import torch  # noqa: PLC0415 - the tests and `texts` do without
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    torch.set_num_threads(1)  # one order of additions
    model = SentenceTransformer(folder, device="cpu")
    made = texts()
    # one at a time: no padding, whatever that might do
    vectors = np.stack([model.encode([text], normalize_embeddings=True)[0] for text in made])
    lengths = [len(model.tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in made]
    np.savez_compressed(
        OUTPUT,
        texts=np.frombuffer(json.dumps(made).encode(), np.uint8),
        vectors=vectors.astype(np.float16),
        lengths=np.array(lengths, np.int32),
    )
    print(f"{len(made)} texts, {OUTPUT.stat().st_size:,} bytes, {sum(n > 256 for n in lengths)} longer than the limit")


if __name__ == "__main__":
    main(sys.argv[1])
