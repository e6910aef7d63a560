"""Columns with names of their own: what the words in a name say, in some fifteen languages.

A reading is clear where the names alone leave one request and one answer. It is taken with a
warning; any other is a question in the wizard, and an error with a `--map` line elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from advisor.data.recognition.columns import Column
from advisor.data.recognition.naming import Candidate, pair_format

MOST_COLUMNS = 500  # a table with more is a matrix: its columns are named with --map
SHOWN_WAYS = 4
LEAST_CHARS = 8  # on average, of a text
ASKED = ("question", "customer", "text", "title")  # who may be the request, the likeliest first
SAID = ("answer", "agent")
WHOLE_WORDS_UP_TO = "\u0590"  # scripts from here on write no spaces: found inside a name


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# What a word in a name says of the column; the first group that fits decides. Without accents.
# English, German, Dutch, Scandinavian, French, Spanish, Portuguese, Italian, Polish, Czech,
# Turkish, Russian, Japanese, Chinese, Korean, Hebrew, Arabic.
WORDS = {
    "nothing": _set(
        "id nr no number key index uuid ref code type kind sort date datum created updated"
        " closed at time timestamp day year month by name author phone url link address status"
        " state priority score rating count length lang language source file path city country"
        " version owner assigned nummer stand prioritat ersteller sprache quelle ort numero"
        " statut etat langue ville fecha hora estado prioridad nombre idioma ciudad data ora"
        " stato priorita nome citta cislo numer tarih durum дата номер статус 番号 日付 日時"
        " 編号 编号 日期 时间 状態 ステータス 状态 번호 날짜 상태"
    ),
    "answer": _set(
        "answer answers reply replies response responses resolution solution completion output"
        " explanation sql antwort antworten erwiderung losung ruckmeldung ausgabe musterantwort"
        " antwoord antwoorden reactie oplossing svar losning vastaus reponse reponses retour"
        " respuesta respuestas contestacion solucion resolucion resposta respostas solucao"
        " resolucao risposta risposte soluzione odpowiedz rozwiazanie odpoved reseni cevap yanit"
        " cozum ответ ответы решение 回答 返信 返答 応答 答え 対応 解決 答案 回复 答复 回覆 解决"
        " 답변 응답 답장 해결 جواب إجابة תשובה"
    ),
    "question": _set(
        "question questions query prompt instruction request inquiry enquiry issue problem ask"
        " complaint frage fragen anfrage anliegen kundenanfrage beschwerde aufgabe eingabe"
        " problembeschreibung vraag vragen verzoek klacht aanvraag fraga fragor arende sporgsmal"
        " henvendelse sporsmal kysymys demande requete reclamation probleme consigne pregunta"
        " preguntas consulta solicitud problema queja instruccion peticion pergunta perguntas"
        " duvida solicitacao reclamacao pedido domanda domande richiesta quesito pytanie"
        " zapytanie zgloszenie polecenie otazka dotaz pozadavek soru talep sikayet вопрос запрос"
        " обращение проблема жалоба 質問 問い合わせ 問合せ 依頼 要望 問題 问题 提问 咨询 請求 問"
        " 질문 문의 요청 سؤال שאלה"
    ),
    "label": _set(
        "label labels class category intent sentiment topic tag department queue team kategorie"
        " klasse abteilung thema stimmung absicht categorie afdeling kategori classe etiquette"
        " service sujet departement categoria clase etiqueta departamento sentimiento tema"
        " etichetta reparto kategoria etykieta dzial stitek oddeleni etiket departman duygu"
        " категория класс метка отдел тональность カテゴリ カテゴリー 分類 種別 部署 感情 类别"
        " 分类 标签 部门 情感 분류 카테고리 부서"
    ),
    "agent": _set(
        "agent assistant support bot staff operator representative advisor expert teacher"
        " doctor gpt mitarbeiter berater sachbearbeiter medewerker conseiller agente asesor"
        " operador atendente operatore konsultant temsilci оператор специалист"
    ),
    "customer": _set(
        "customer client user human visitor guest requester caller patient student kunde kunden"
        " kundin nutzer benutzer mandant klant gebruiker kund utilisateur cliente usuario utente"
        " klient musteri kullanici клиент пользователь"
    ),
    "title": _set(
        "subject title headline betreff titel onderwerp objet sujet titre asunto titulo assunto"
        " oggetto titolo temat predmet konu baslik тема 件名 タイトル 标题 主题 제목"
    ),
    "text": _set(
        "text texts message messages body content contents description comment note email mail"
        " ticket nachricht nachrichten beschreibung inhalt mitteilung bericht omschrijving"
        " inhoud tekst beskrivning meddelande beskrivelse besked melding texte contenu courriel"
        " texto mensaje contenido descripcion mensagem conteudo descricao testo messaggio"
        " contenuto descrizione wiadomosc opis tresc zprava popis mesaj aciklama metin сообщение"
        " описание текст 内容 本文 説明 描述 正文 メッセージ 消息 내용 메시지 설명"
    ),
    "chosen": _set(
        "good better best chosen preferred accepted winner positive gut gute besser bessere bon"
        " bonne meilleur meilleure bueno buena mejor bom boa melhor buono buona migliore"
    ),
    "rejected": _set(
        "bad worse worst rejected dispreferred loser negative schlecht schlechte schlechter"
        " mauvais mauvaise pire malo mala peor mau ruim pior cattivo cattiva peggiore"
    ),
}


def role_of(name: str) -> str:
    """The group of WORDS that a column's name belongs to; "" for none. Of a nested one the last
    part decides ('resolution.agent'), or all of it where that says little ('resolution.text').
    """
    last = name.rpartition(".")[2]
    if last != name and (role := role_of(last)) not in ("", "text"):
        return role
    words, whole = plain_words(name), unicodedata.normalize("NFC", name)
    for role, group in WORDS.items():
        if any(map(group.__contains__, words)):
            return role
        if role != "nothing" and any(_ends_with(word, group) for word in words):
            return role
        if any(part in whole for part in group if part >= WHOLE_WORDS_UP_TO):
            return role
    return ""


def plain_words(name: str) -> list[str]:
    """The words of a column's name, in small letters and without accents: 'Agent_Reply' and
    'agentReply' are agent, reply.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    letters = unicodedata.normalize("NFKD", spaced.replace("ł", "l").replace("ø", "o"))
    bare = "".join(char for char in letters if not unicodedata.combining(char))
    return re.findall(r"[^\W_]+", bare.casefold())


def _ends_with(word: str, group: frozenset[str]) -> bool:
    """Whether a word ends with one of a group: German writes words together."""
    return any(len(part) >= 5 and word.endswith(part) for part in group)


def by_words(columns: Mapping[str, Column]) -> tuple[list[Candidate], bool]:
    """Ways to read columns whose names are no known ones, best first, and whether the names leave
    no other way than the first.
    """
    if len(columns) > MOST_COLUMNS:
        return [], False
    texts = {name: role_of(name) for name, column in columns.items() if _is_text(column)}
    texts = {name: role for name, role in texts.items() if role not in ("nothing", "label")}
    better, worse = ([name for name in texts if WORDS[side] & {*plain_words(name)}]
                     for side in ("chosen", "rejected"))  # fmt: skip
    if len(better) == len(worse) == 1 and better != worse:
        asked = _best({name: texts[name] for name in texts if name not in better + worse}, ASKED)
        if len(asked) == 1:
            return [_preference(asked[0], better[0], worse[0])], True
    said = _best(texts, SAID)
    asked = _best({name: role for name, role in texts.items() if name not in said}, ASKED)
    pairs = [_pair(question, answer) for question in asked or texts for answer in said or texts
             if question != answer]  # fmt: skip
    if len(asked) == len(said) == 1:
        # Codes, or a few states again and again ("fixed", "duplicate"), may be called a solution.
        rivals = [name for name, role in texts.items() if role in ASKED and role != "title"]
        says_little = (_is_thin(columns[said[0]]) and texts[asked[0]] != "question") or (
            _is_thin(columns[asked[0]]) and len(rivals) > 1
        )
        return pairs, not says_little
    return pairs[:SHOWN_WAYS] or [_single(name) for name in texts], False


def _is_text(column: Column) -> bool:
    return column.shape in ("text", "texts") and not (column.holds_addresses or column.holds_dates)


def _is_thin(column: Column) -> bool:
    return column.mean_characters < LEAST_CHARS or column.is_label(named=False)


def _best(texts: Mapping[str, str], roles: tuple[str, ...]) -> list[str]:
    """The columns of the first of these roles that any column has."""
    found = ([name for name, own in texts.items() if own == role] for role in roles)
    return next(filter(None, found), [])


def for_task(wanted: str, chosen: Candidate, columns: Mapping[str, Column]) -> Candidate | None:
    """Another reading of the columns, where the task needs what the chosen one leaves out.

    Args:
        wanted: "reply": a column of replies beside a text and its category; "label": a column of
            categories beside a request and its answer.
        chosen: The reading by known names or by words.
    """
    if wanted == "reply" and chosen.format in ("classification", "text"):
        ways, clear = by_words(columns)
        if clear and role_of(ways[0].mapping.get("answer", "")) in SAID:
            return ways[0]
    if wanted == "label" and {"question", "answer"} <= chosen.mapping.keys():
        answer = columns.get(chosen.mapping["answer"])
        labels = [
            name
            for name, column in columns.items()
            if role_of(name) == "label" and column.is_label(named=True) and len(column.values) > 1
        ]
        if len(labels) == 1 and answer is not None and not answer.is_label(named=True):
            text = chosen.mapping["question"]
            why = f"a text in `{text}` and its category in `{labels[0]}`"
            mapping = {"text": text, "label": labels[0]}
            return Candidate(format="classification", mapping=mapping, why=why)
    return None


def _preference(asked: str, better: str, worse: str) -> Candidate:
    return Candidate(
        format="preference",
        mapping={"question": asked, "chosen": better, "rejected": worse},
        why=f"a better (`{better}`) and a worse (`{worse}`) answer to `{asked}`",
    )


def _pair(question: str, answer: str) -> Candidate:
    mapping = {"question": question, "answer": answer}
    return Candidate(
        format=pair_format(mapping),
        mapping=mapping,
        why=f"a request in `{question}` and its answer in `{answer}`",
    )


def _single(name: str) -> Candidate:
    return Candidate(format="text", mapping={"text": name}, why=f"a text in `{name}`")
