"""Texts in many scripts to compare a WordPiece tokenizer with another implementation.

All texts were written for this project; people, towns and figures are invented. Characters that an
editor might not display correctly are written as escapes.

``TEXTS`` are single strings, ``PAIRS`` (question, context) pairs. The longer contexts repeat
sentences with a running number, so that they fill several windows.
"""

from __future__ import annotations

import unicodedata


def _nfd(text: str) -> str:
    """Return the text decomposed into base characters and marks."""
    return unicodedata.normalize("NFD", text)


def _nfc(text: str) -> str:
    """Return the text composed."""
    return unicodedata.normalize("NFC", text)


_ENGLISH = [
    "The harbour clock had stopped at ten past four, and nobody in Pellick cared to wind it.",
    "Why did the baker's daughter, who couldn't swim, row out to the lighthouse alone?",
    "Mr. O'Leary-Smythe (aged 71) said: \"I've never paid more than 3.5% interest, and I won't!\"",
    "A re-examination of the co-operative's well-known by-laws was long overdue; it began in 1987.",
    "UNBELIEVABLE! Forty-two SHEEP were Found asleep in the Town Hall, reports the Evening Gull.",
    "the internationalisation of unfathomably overcomplicated bookkeeping disheartened everyone",
]

_GERMAN = [
    "Der Müller von Übersee mahlte täglich zwölf Säcke Roggen, doch die Straße blieb gesperrt.",
    "Die Donauschifffahrtsgesellschaftsmütze gehörte Herrn Weißgräber; er trug sie mit Stolz.",
    "GROẞE ÄPFEL UND SÜSSE BIRNEN kosten in Öhringsdorf höchstens 4,20 € je Kilo.",
]

_FRENCH = [
    "L’été, la vieille horlogère a réparé dix\u2011sept pendules\u202f; quel travail\u00a0!",
    "« Où est passée ma sœur ? » demanda le garçon, naïf, en mangeant un œuf à la coque.",
    "Ça coûte combien, cette boîte de gâteaux ? — Huit francs, monsieur, et c'est donné.",
]

_SPANISH = [
    "¿Cuántos años tenía la niña cuando el tren llegó por primera vez a Peñablanca?",
    "¡Qué vergüenza! El pingüino se comió el último jamón del señor Ibáñez, ¿y quién lo vio?",
]

_TURKISH = [
    "İstasyondaki ihtiyar balıkçı, ılık çayını içip İzgin adasına giden gemiyi bekledi.",
    "IŞIKLI KIYI KÖYÜNDE YAĞMUR DİNMEDİ; çocuklar ığıl ığıl akan dereye kâğıt gemi bıraktı.",
]

_VIETNAMESE = [
    "Người thợ đồng hồ ở phố cũ sửa được mười bảy chiếc đồng hồ trước khi trời tối.",
    "Bà cụ kể chuyện về chiếc thuyền gỗ nhỏ đã vượt qua những đợt sóng dữ để về đến bến.",
]

_GREEK = [
    "Ο γέρος ψαράς άφησε τη βάρκα του στο λιμάνι και ανέβηκε με τα πόδια ως τον φάρο.",
    "ΠΟΙΟΣ ΕΧΤΙΣΕ ΤΟΝ ΦΑΡΟ; Η Ιουλία, μια μηχανικός από την Κάτω Βρύση, είπε ο Ὀδυσσεύς.",
    "Το ταΐζω και το προϊόν θέλουν διαλυτικά, όπως ακριβώς ο μΰς και η πραΰτητα.",
]

_RUSSIAN = [
    "Старый смотритель маяка каждый вечер поднимался по винтовой лестнице и зажигал огонь.",
    "Ёжик съел семь жёлтых груш, а подъёмный кран всё ещё стоял во дворе. Чей это кран?",
    "Майский чай и пойманный йод: сколько же букв «Й» и «Ё» в этой странной строчке?",
]

_ARABIC = [
    "وصلت السفينة إلى الميناء في صباح يوم الخميس، وكان على متنها أربعون راكبًا.",
    "كَتَبَ المُعَلِّمُ رِسالَةً قَصيرَةً إِلى أُخْتِهِ في المَدينَةِ البَعيدَةِ؟ نَعَم، عام ١٩٢٤.",
]

_HEBREW = [
    "השען הזקן תיקן שבעה עשר שעונים לפני שירד הערב על הנמל הקטן.",
    "הַסְּפִינָה הַקְּטַנָּה יָצְאָה מִן הַנָּמָל בַּבֹּקֶר, וְאִישׁ לֹא רָאָה אוֹתָהּ.",
]

_HINDI = [
    "बूढ़े घड़ीसाज़ ने शाम होने से पहले सत्रह घड़ियाँ ठीक कर दीं।",
    "क्या ज़मींदार की बेटी ने सचमुच क्षेत्र का पहला विद्यालय १९३२ में खोला था?",
]

_THAI = [
    "ช่างซ่อมนาฬิกาเดินขึ้นไปบนประภาคารทุกเย็นเพื่อจุดตะเกียงให้เรือที่กำลังกลับบ้าน",
    "น้ำในแม่น้ำปีนี้สูงกว่าปีที่แล้ว ๓ เมตร ชาวบ้านจึงย้ายไปอยู่บนเนินเขา",
]

_CHINESE = [
    "老钟表匠在天黑以前修好了十七座钟\uff0c然后沿着河边慢慢走回家。",
    "这座灯塔是谁建的\uff1f听说是一位姓林的女工程师\uff0c一九三一年完工\uff0c高41米。",
    "港口的舊鐘樓停在四點十分\uff0c鎮上沒有一個人願意去上發條。",
]

_JAPANESE = [
    "古い灯台のあかりは、毎晩七時になると静かに海を照らしはじめる。",
    "ガラス工場のペンギンがコーヒーを飲んで、パンを三つ食べたのはなぜですか\uff1f",
    "ぱぴぷぺぽ、がぎぐげご、ヴァイオリンとヷの音。々、〆、ヶも忘れずに。",
]

_KOREAN = [
    "늙은 시계공은 해가 지기 전에 시계 열일곱 개를 모두 고쳤다.",
    "등대를 세운 사람은 누구이며, 배는 몇 시에 항구로 돌아왔습니까?",
]

TEXTS: list[str] = [
    *_ENGLISH,
    *_GERMAN,
    *_FRENCH,
    *_SPANISH,
    *_TURKISH,
    *_VIETNAMESE,
    *_GREEK,
    *_RUSSIAN,
    *_ARABIC,
    *_HEBREW,
    *_HINDI,
    *_THAI,
    *_CHINESE,
    *_JAPANESE,
    *_KOREAN,
    # The same words composed, decomposed, and half decomposed.
    _nfd(_VIETNAMESE[0]),
    "Vi\u00ea\u0323t, Vi\u1eb9\u0302t, Vi\u1ec7t, Vie\u0302\u0323t, Vie\u0323\u0302t",
    _nfd(_FRENCH[0] + " " + _GERMAN[0] + " " + _SPANISH[1]),
    _nfd(_GREEK[0]),
    _nfd(_GREEK[1] + " " + _RUSSIAN[2]),
    _nfd(_JAPANESE[2]),
    _nfd(_KOREAN[0]),
    # Conjoining Jamo that form no modern syllable, compatibility Jamo, half-width Hangul.
    "\u1100\u119e\u11bc \u1160\u11a8 \u115f\u1161 \u3131\u314f\u3134 \u3164 \uffa1\uffc2 끝",
    _nfc(_HEBREW[1]) + " \ufb2a\ufb35 \ufb4f",
    # More scripts.
    "பழைய கடிகாரம் நின்றது. ঘড়িটি থেমে গেল। ゑゐ ሰዓቱ ቆመ። საათი გაჩერდა. ժամացույցը կանգ առավ։",
    "Zażółć gęślą; příliš žluťoučký; Ångström, Æsir, Þór, ðað, Łódka, Đorđe, ŋ, ß, ı, ĸ, ſ",
    # Casing that changes length or depends on the position in the word.
    "İ I ı i \u0130\u0307 I\u0307 ΣΊΣΥΦΟΣ Σ ΟΔΟΣ. ẞ ß "
    "\u0149 \u01f0 \u01c4 \u01c5 \u01c6 \u212a \u212b \u2126",
    "ΆΈΉΊΌΎΏ ΪΫ ΐΰ ᾳ ᾼ ῼ Ἀθηνᾶ ᾧ ΤΟ ΦΩΣ ΤΟΥ ΦΑΡΟΥ, ϐ ϑ ϕ ϖ ϰ ϱ ς",
    # Emoji: plain, skin tones, families joined by U+200D, flags, keycaps, variation selectors.
    "Great job 👍 and thanks 🎉🎉 see you at the fair 🐟😀!",
    "Hands: \U0001f44b\U0001f3fb \U0001f44b\U0001f3fd \U0001f44b\U0001f3ff "
    "and a cook \U0001f469\U0001f3fe\u200d\U0001f373",
    "Family: \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 lives at No. 9; "
    "rainbow \U0001f3f3\ufe0f\u200d\U0001f308",
    "Flags \U0001f1f3\U0001f1f4\U0001f1ef\U0001f1f5 and \U0001f3f4\U000e0067\U000e0062\U000e0065"
    "\U000e006e\U000e0067\U000e007f, keys 1\ufe0f\u20e3 #\ufe0f\u20e3 *\u20e3, hearts \u2764\ufe0f "
    "\u2764\ufe0e",
    # Invisible characters inside and between words.
    "zero\u200bwidth space, zero\u200cwidth non-joiner, zero\u200dwidth joiner, word\u2060joiner",
    "soft\u00adhyphen in har\u00adbour\u00admas\u00adter; \u00ad alone; end\u00ad",
    "\ufeffA byte order mark at the start, one in\ufeffside, and one at the end\ufeff",
    "left\u200eright\u200f marks, \u202bembedded\u202c, \u2066isolated\u2069, \u061cletter mark",
    "نامه\u200cها و کتاب\u200cهای می\u200cخواهم \u0640\u0640 ـ ۱۲۳۴۵",
    "क\u094d\u200dष क\u094d\u200cष क\u094dष र\u094d\u200d",
    # Control characters.
    "null\x00byte, bell\x07rings, escape\x1b[31mred\x1b[0m, delete\x7fme, next\x85line, c1\x9bcsi",
    "\x00\x01\x02\x03\x04\x05\x06\x08\x0e\x0f\x10\x1f\x7f\x80\x9f",
    "file\x1cgroup\x1drecord\x1eunit\x1fvertical\x0btab form\x0cfeed back\x08space",
    # White space of many kinds.
    "tab\tseparated\tvalues\t\tand\nnew lines\n\nand\r\nWindows lines\r\nand an old\rMac line\r",
    "no\u00a0break, narrow\u202fspace, figure\u2007space, thin\u2009space, en\u2002em\u2003spaces",
    "全角\u3000空白と\u3000ideographic\u3000space, ogham\u1680space, mongolian\u180evowel",
    "line\u2028separator and paragraph\u2029separator, medium\u205fmath space",
    "   leading and trailing blanks, and    many    inside   ",
    "     ",
    "\t\n\r\n \u00a0\u3000\u2028",
    "",
    # Numbers, prices, units.
    "3141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825",
    "Over 32+ children paid €3.50 each for 12,000 km² of moor: £0.25–$1,299.99 or ¥500 per m³.",
    "−31.4 °C at 06:30, 5′11″, 90°, 20 \u00b5m, 20 \u03bcm, 47 Ω, ±0.5 ‰, "
    "1e-9, 0x1F, 1_000_000, #7, №12, §4",
    "½ cup, ⅔ litre, 3¼ miles, 1⁄2 inch, x², y³, H₂O, 10⁻⁶, aⁿ, 1ˢᵗ, ™ © ® ℠ ª º ① ⑳ Ⅷ ⅻ ㎏ ㏒",
    "₿1.2 ₹900 ₺45 ₽300 ₩1000 ₫20.000 ₪18 ฿60 ¢99 ¤1 ﷼5 \uff04\uff11\uff0c\uff10 \uffe5\uff19",
    "١٢٣٤٥ १२३४५ ๑๒๓๔๕ 一二三四五 \uff11\uff12\uff13\uff14\uff15 ൧൨൩",
    # URLs, mail, code, mathematics.
    "See https://www.example.org/a_b/c-d?q=1&lang=de#top, or ask j.doe+news@mail.example.com.",
    "def add(x: int, *, y=0) -> int:\n\treturn x+y  # `add`\nif (a[i] != b->c) { e |= ~0x3f; }",
    "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε; ∑ᵢ₌₁ⁿ i = n(n+1)/2, ∫₀¹ √x dx ≈ 0.667, A∩B⊆C, ∂u/∂t",
    "$HOME/.config\\path\\to\\file.tar.gz | grep -iE '^[a-z]+$' > out_01.txt 2>&1; echo ~^`@%{}<>=",
    # Quotes, dashes, ligatures, full-width and styled letters.
    "“Curly” ‘single’ „low“ ‚one‘ «guillemets» ‹small› 「鉤」『二重』 \"straight\" 'plain'",
    "`tick` ´acute´ ″double prime″ 〝ditto〞 ❝heavy❞",
    "hyphen-minus, \u2010hyphen, \u2011non-breaking, \u2012figure, –en, —em, \u2015bar, "
    "\u2212minus, … three dots ... ‥ ‽ ⁇ •",
    "The o\ufb03ce \ufb01led \ufb02at o\ufb00ers, \ufb06amps, \u0132sland, \u01c6ep, \u0153uvre",
    "\uff26\uff55\uff4c\uff4c\uff0d\uff37\uff49\uff44\uff54\uff48 \uff21\uff22\uff23\uff01 "
    "and half-width \uff76\uff9e\uff77\uff9f\uff78",
    "\U0001d40c\U0001d41a\U0001d42d\U0001d421 \U0001d4d1\U0001d4f8\U0001d4f5\U0001d4ed "
    "\U0001d55c \U0001d7d9\U0001d7da \u210d \u212c \u24b6\u24d1 \U0001f170 \u1d00\u0299",
    # Marks without a base, many marks on one base, private use, unassigned, non-characters.
    "\u0301\u0302 \u0327 alone, \u0308u first, e\u0301\u0302\u0303\u0304\u0305\u0316\u0317\u0332",
    "Z\u0335\u0322a\u0337\u0348l\u0336\u0353g\u0334\u0320o\u0338\u0326 \u20dd\u20e0 x\u20d7",
    "private \ue000 use \uf8ff area \U000f0000 \U0010fffd, replacement \ufffd char\ufffdacter",
    "unassigned \u0378 \U0003fffe, noncharacter \ufdd0 \uffff \U0001ffff, tag \U000e0001 end",
    "\U00020000\U0002a6df 𠮷野家 \U0002f800 \uf900\ufa0e \u3400\u4dbf \u2e80 \u31c0 〇 ㈱ ㍿ ㊙ ﹏",
    # Words without an end.
    "".join("abcdefghijklmnopqrst"[i * 7 % 20] for i in range(300)),
    "a" * 100 + " " + "b" * 101 + " " + "ü" * 100 + " " + "e\u0301" * 60,
    "thistexthasnospacesatallbutitstillgoesonandonuntilthereadergivesup;andthenitgoesonalittle",
    "\u4e2dword\u6587mixed\u306ekana\ud55c\uae00and\u0440\u0443\u0441together42km",
    # Special tokens and pieces as plain text.
    "[SEP] [MASK] [CLS] [UNK] [PAD] in running text, before[SEP]after, and [ SEP ] with blanks",
    "[sep] [Mask] [cls] [unk] [pAd] in other cases, [SEP [MASK]] (CLS), [PAD][PAD], [unused1]",
    "What is \u00ad[CLS]\u200b or [MA\u200bSK] or [MÀSK] or \uff3bSEP\uff3d?",
    "##ing and play##ing ## ing, # #ed, un##believ##able ### ##1 ##",
    "camelCase, PascalCaseName, snake_case_name, SCREAMING_CASE, kebab-case, iPhone9s, mRNA, x86",
    "don't won't it's o'clock rock 'n' roll y'all'd've '90s dogs' d’accord l'on ʻokina qu'\u02bcn",
    "e.g. i.e. a.m. Ph.D. U.S.S.R. vs. etc.... ?!?! --- *** ___ === //// \\\\ (((nested))) ;-) <3",
]


def _repeat(sentences: list[str], times: int, join: str = " ") -> str:
    """Return the sentences, repeated with a running number before each."""
    said = (sentences[i % len(sentences)] for i in range(times))
    return join.join(f"({i + 1}) {sentence}" for i, sentence in enumerate(said))


def _log(days: int) -> str:
    """Return the log of a voyage of so many days, all days different."""
    winds = ["north", "north-east", "east", "south-east", "south", "south-west", "west", "no"]
    catch = ["herring", "cod", "a squid", "two anchovies", "nothing", "an old boot", "mackerel"]
    mates = ["Ilse", "Corwin", "Zoë", "Agnes", "Jørgen", "Tobias"]
    return " ".join(
        f"On day {day} there was {winds[day * 3 % 8]} wind, the ship made {day * 37 % 113} miles, "
        f"{mates[day * 5 % 6]} steered, and the net brought up {catch[day * 2 % 7]}."
        for day in range(1, days + 1)
    )


PAIRS: list[tuple[str, str]] = [
    (
        "Who wound the harbour clock in Pellick?",
        "The harbour clock in Pellick had stopped at ten past four. Old Corwin Dorrit, who lived "
        "in the loft above it, wound it again on the first Monday of every month.",
    ),
    ("What did the net bring up on day 23?", _log(36)),
    ("Who steered on day 3?", _log(12)),
    ("How many miles did the ship make on day 11, and who was steering at the time?", _log(24)),
    ("What was written in capital letters?", " ".join(_ENGLISH)),
    ("why was the BY-LAW re-examined?", _repeat(_ENGLISH, 42)),
    (
        # A question longer than any usual limit of a question.
        "Considering "
        + "the very long and rather tedious deliberations of the committee, " * 6
        + "who won?",
        _log(18),
    ),
    ("Wem gehörte die Mütze?", " ".join(_GERMAN)),
    ("Wie viele Säcke mahlte der Müller täglich?", _repeat(_GERMAN, 36)),
    ("Combien de pendules l’horlogère a\u2011t\u2011elle réparées\u202f?", _repeat(_FRENCH, 40)),
    (_nfd("Où est passée la sœur ?"), _nfd(_repeat(_FRENCH, 20))),
    ("¿Quién se comió el jamón?", _repeat(_SPANISH, 28)),
    ("İHTİYAR BALIKÇI NEYİ BEKLEDİ?", _repeat(_TURKISH, 30)),
    ("Ai sửa đồng hồ?", _repeat(_VIETNAMESE, 18)),
    (_nfd("Chiếc thuyền gỗ đã vượt qua những gì?"), _nfd(_repeat(_VIETNAMESE, 18))),
    ("Πού άφησε ο ψαράς τη βάρκα του;", _repeat(_GREEK, 24)),
    ("Сколько груш съел ёжик?", _repeat(_RUSSIAN, 30)),
    ("كم راكبًا كان على متن السفينة؟", _repeat(_ARABIC, 20)),
    ("כמה שעונים תיקן השען?", _repeat(_HEBREW, 24)),
    ("घड़ीसाज़ ने कितनी घड़ियाँ ठीक कीं?", _repeat(_HINDI, 24)),
    ("ช่างซ่อมนาฬิกาทำอะไรทุกเย็น", _repeat(_THAI, 12)),
    ("灯塔高多少米\uff1f", _repeat(_CHINESE, 24, join="")),
    ("灯台は何時に海を照らしますか\uff1f", _repeat(_JAPANESE, 24, join="")),
    ("시계공은 시계를 몇 개 고쳤습니까?", _repeat(_KOREAN, 22)),
    (_nfd("시계공은 시계를 몇 개 고쳤습니까?"), _nfd(_repeat(_KOREAN, 22))),
    ("What stands between the scripts?", " / ".join(text for text in TEXTS[:40] if text.strip())),
    ("Which characters\u200b can nobody see?", "\n".join(TEXTS[40:])),
    (
        "  How much is [MASK]\u00a0?\t",
        "  \t"
        + _repeat([text for text in TEXTS if "€" in text or "[" in text], 14, "\r\n")
        + " \n",
    ),
    (
        "Who lives at No. 9 \U0001f3e0?",
        _repeat([text for text in TEXTS if any(ord(ch) > 0xFFFF for ch in text)], 18),
    ),
    (
        "Where does the word end?",
        "It begins here: " + "".join(_log(14).split()) + ". It ended there.",
    ),
    (
        "How tall is the lighthouse (in metres)?",
        "\n\n".join(
            f"{_log(9)}\n{_ENGLISH[i % 6]}\t{_CHINESE[i % 3]} {_RUSSIAN[i % 3]}" for i in range(4)
        ),
    ),
]
