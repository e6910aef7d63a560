"""What people call their columns in many languages: words for requests, answers, categories and
what is no text to learn from.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Each line is one language: English, German, Dutch, Scandinavian, French, Spanish, Portuguese,
# Italian, Polish, Czech, Turkish, Russian, Japanese, Chinese, Korean. Without accents.
REQUESTS = _set(
    "question questions query prompt instruction request inquiry enquiry issue problem ask"
    " complaint"
    " frage fragen anfrage anliegen kundenanfrage beschwerde aufgabe eingabe problembeschreibung"
    " vraag vragen verzoek klacht aanvraag"
    " fraga fragor arende sporgsmal henvendelse sporsmal kysymys"
    " demande requete reclamation probleme consigne"
    " pregunta preguntas consulta solicitud problema queja instruccion peticion"
    " pergunta perguntas duvida solicitacao reclamacao pedido"
    " domanda domande richiesta quesito"
    " pytanie zapytanie zgloszenie polecenie"
    " otazka dotaz pozadavek"
    " soru talep sikayet"
    " вопрос запрос обращение проблема жалоба"
)
ANSWERS = _set(
    "answer answers reply replies response responses resolution solution completion output result"
    " explanation expected sql code"
    " antwort antworten erwiderung losung ruckmeldung ausgabe musterantwort"
    " antwoord antwoorden reactie oplossing"
    " svar losning vastaus"
    " reponse reponses retour resolution"
    " respuesta respuestas contestacion solucion resolucion"
    " resposta respostas solucao resolucao"
    " risposta risposte soluzione"
    " odpowiedz rozwiazanie"
    " odpoved reseni"
    " cevap yanit cozum"
    " ответ ответы решение"
)
# Texts of either side: taken for the request where nothing names them an answer.
TEXTS = _set(
    "text texts message messages body content contents description comment note email mail ticket"
    " nachricht nachrichten beschreibung inhalt mitteilung"
    " bericht omschrijving inhoud tekst"
    " beskrivning meddelande beskrivelse besked melding"
    " texte contenu courriel"
    " texto mensaje contenido descripcion mensagem conteudo descricao"
    " testo messaggio contenuto descrizione"
    " wiadomosc opis tresc zprava popis"
    " mesaj aciklama metin"
    " сообщение описание текст"
)
ASKING = _set(
    "customer client user human visitor guest requester caller patient student"
    " kunde kunden kundin nutzer benutzer mandant klant gebruiker kund"
    " utilisateur cliente usuario utente klient musteri kullanici клиент пользователь"
)
ANSWERING = _set(
    "agent assistant support bot staff operator representative advisor expert teacher doctor gpt"
    " mitarbeiter berater sachbearbeiter medewerker conseiller agente asesor operador atendente"
    " operatore konsultant temsilci оператор специалист"
)
BETTER = _set(
    "good better best chosen preferred accepted winner positive gut gute besser bessere bon bonne"
    " meilleur meilleure bueno buena mejor bom boa melhor buono buona migliore"
)
WORSE = _set(
    "bad worse worst rejected dispreferred loser negative schlecht schlechte schlechter mauvais"
    " mauvaise pire malo mala peor mau ruim pior cattivo cattiva peggiore"
)
LABELS = _set(
    "label labels class category intent sentiment topic tag department queue team"
    " kategorie klasse abteilung thema stimmung absicht categorie klasse afdeling kategori"
    " categorie classe etiquette service sujet departement categoria clase etiqueta departamento"
    " sentimiento tema classe etichetta reparto kategoria etykieta dzial kategorie stitek oddeleni"
    " etiket departman duygu категория класс метка отдел тональность"
)
TITLES = _set(
    "subject title headline betreff titel onderwerp objet sujet titre asunto titulo assunto oggetto"
    " titolo temat predmet konu baslik тема"
)
NO_TEXT = _set(
    "id nr no number key index uuid ref date datum created updated closed at time timestamp"
    " day year month by name author email mail phone url link address status state priority score"
    " rating count length lang language source file path city country version owner assigned"
    " nummer stand prioritat ersteller sprache quelle ort numero statut etat langue ville fecha"
    " hora estado prioridad nombre idioma ciudad data ora stato priorita nome citta status cislo"
    " numer tarih durum дата номер статус"
)
# Scripts without spaces between words: found inside a name.
INSIDE = {
    "request": _set(
        "質問 問い合わせ 問合せ 依頼 要望 問題 问题 提问 咨询 請求 問 질문 문의 요청 سؤال שאלה"
    ),
    "answer": _set(
        "回答 返信 返答 応答 答え 対応 解決 答案 回复 答复 回覆 解决 답변 응답 답장 해결 جواب إجابة"
        " תשובה"
    ),
    "text": _set("内容 本文 説明 描述 正文 メッセージ 消息 내용 메시지 설명"),
    "title": _set("件名 タイトル 标题 主题 제목"),
    "label": _set(
        "カテゴリ カテゴリー 分類 種別 部署 感情 类别 分类 标签 部门 情感 분류 카테고리 부서"
    ),
    "no_text": _set(
        "番号 日付 日時 編号 编号 日期 时间 状態 ステータス 状态 번호 날짜 상태 メール 邮箱"
    ),
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """How far a column's name says that it holds a request, an answer, a title or no text: 0 to
    1.
    """

    request: float
    answer: float
    is_named: bool = False  # by a word for requests or answers, not by who speaks or for any text
    is_title: bool = False
    is_label: bool = False
    is_no_text: bool = False


def plain_words(name: str) -> list[str]:
    """The words of a column's name, in small letters and without accents: 'Agent_Reply' and
    'agentReply' are agent, reply.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    letters = unicodedata.normalize("NFKD", spaced.replace("ł", "l").replace("ø", "o"))
    bare = "".join(char for char in letters if not unicodedata.combining(char))
    return re.findall(r"[^\W_]+", bare.casefold())


def meaning(name: str) -> Meaning:
    """What a column's name says; of a nested one ('resolution.text') all its parts together."""
    words = plain_words(name)
    whole = unicodedata.normalize("NFC", name)

    def has(group: frozenset[str], kind: str = "") -> bool:
        return any(_is_in(word, group) for word in words) or any(
            part in whole for part in INSIDE.get(kind, ())
        )

    requests, answers = has(REQUESTS, "request"), has(ANSWERS, "answer")
    asking, answering = has(ASKING), has(ANSWERING)
    texts = has(TEXTS, "text")
    request = answer = 0.0
    if requests and answers:
        last_request = max(
            (place for place, word in enumerate(words) if word in REQUESTS), default=0
        )
        last_answer = max((place for place, word in enumerate(words) if word in ANSWERS), default=0)
        request, answer = (0.6, 0.0) if last_request > last_answer else (0.0, 0.6)
    elif answers:
        answer = 0.8 if asking and not answering else 1.0
    elif requests:
        request = 0.8 if answering and not asking else 1.0
    elif answering != asking:
        request, answer = (0.9, 0.0) if asking else (0.0, 0.9)
    elif texts:
        request = 0.6
    return Meaning(
        request,
        answer,
        is_named=(requests or answers) and _is_noun(name.rpartition(".")[2]),
        is_title=has(TITLES, "title"),
        is_label=has(LABELS, "label"),
        is_no_text=any(word in NO_TEXT for word in words)
        or any(part in whole for part in INSIDE["no_text"]),
    )


def _is_noun(name: str) -> bool:
    """Whether the name itself holds a word for requests or answers, and not only the object around
    it.
    """
    words = plain_words(name)
    inside = (*INSIDE["request"], *INSIDE["answer"])
    return any(_is_in(word, REQUESTS | ANSWERS) for word in words) or any(
        part in name for part in inside
    )


def _is_in(word: str, group: frozenset[str]) -> bool:
    """Whether a word is one of them, or ends with one: German writes words together."""
    return word in group or any(len(part) >= 5 and word.endswith(part) for part in group)
