"""The sentences of the sample's small world: three patterns each, one a language, with the same slots.

Slots: p, f and r people, j a job, o and q things, w a place, c and e
cities, a and b activities, n an animal, g and h organisations, d a date, t a term and m its meaning, k a country,
v a verb. After the colon stands the form that the sentence asks for.
"""

from __future__ import annotations

from septet.data.sample_words import triples

# Little stories: how it begins, what goes wrong, who helps, how it ends.
STORY = (
    triples("""
        {p} was {j:a} and lived in {c}.
        {p} était {j} et habitait à {c}.
        {p}是{j:一}，住在{c}。
        Early one morning, {p} left home with {o:a}.
        Un matin de bonne heure, {p} est sorti{p:|e} avec {o:un}.
        一天清早，{p}带着{o:一}出了门。
        Long ago in {c}, {p} owned {o:a}.
        Il y a longtemps à {c}, {p} possédait {o:un}.
        很久以前，在{c}，{p}有{o:一}。
        {p} had a quiet life and loved {a} above everything.
        {p} menait une vie tranquille et aimait {a:le} plus que tout.
        {p}过着平静的生活，最喜欢{a}。
        It was a cold evening, and {p} was alone {w}.
        C'était un soir froid, et {p} était seul{p:|e} {w}.
        那是一个寒冷的晚上，{p}一个人{w}。
        One winter, grandmother gave {o:a} to {p}, who lived in {c}.
        Un hiver, la grand-mère a donné {o:un} à {p}, qui habitait à {c}.
        有一年冬天，奶奶送给{p}{o:一}，那时{p:他|她}住在{c}。"""),
    triples("""
        {p:He|She} often talked about {a} with {f}.
        {p:Il|Elle} parlait souvent {a:du} avec {f}.
        {p:他|她}常常和{f}谈论{a}。
        Every Sunday, {f} came to visit {p:him|her}.
        Chaque dimanche, {f} venait {p:le|la} voir.
        每个星期天，{f}都来看{p:他|她}。
        {w}, there was also {n:a} that followed {p:him|her} everywhere.
        {w}, il y avait aussi {n:un} qui {p:le|la} suivait partout.
        {w}还有{n:一}，总是跟着{p:他|她}。
        {p:His|Her} friend {f} liked {o:the} very much.
        Son {f:ami|amie} {f} aimait beaucoup {o:le}.
        {p:他|她}的朋友{f}很喜欢{o:这}。
        The weather was fine, and the birds were singing.
        Il faisait beau et les oiseaux chantaient.
        天气很好，鸟儿在歌唱。
        Nobody in the village knew where {o:the} came from.
        Personne au village ne savait d'où venait {o:le}.
        村里没有人知道{o:这}是从哪里来的。"""),
    triples("""
        One day, {o:the} disappeared.
        Un jour, {o:le} a disparu.
        有一天，{o}不见了。
        Suddenly it began to rain, and {o:the} fell into the river.
        Soudain il s'est mis à pleuvoir, et {o:le} est tombé{o:|e} dans la rivière.
        突然下起了大雨，{o}掉进了河里。
        But {n:a} ran away with {o:the}.
        Mais {n:un} s'est enfui{n:|e} avec {o:le}.
        可是{n:一}带着{o}跑了。
        {p} looked everywhere and found only {q:a}.
        {p} a cherché partout et n'a trouvé {q:qu'un}.
        {p}到处寻找，只找到了{q:一}。
        {p:He|She} did not know what to do and sat down {w}.
        {p:Il|Elle} ne savait plus quoi faire et s'est assis{p:|e} {w}.
        {p:他|她}不知道该怎么办，{w}坐了下来。
        That night, somebody knocked three times at the door.
        Cette nuit-là, quelqu'un a frappé trois fois à la porte.
        那天夜里，有人敲了三次门。
        Then a letter arrived from {c}, and it spoke of {q:a}.
        Puis une lettre est arrivée {c:de} ; elle parlait {q:d'un}.
        后来从{c}来了一封信，信里说到{q:一}。"""),
    triples("""
        {f} heard about it and came at once.
        {f} l'a appris et est venu{f:|e} aussitôt.
        {f}听说以后马上赶来了。
        “Do not worry,” said {f}, “we will look together.”
        « Ne t'inquiète pas, a dit {f}, nous allons chercher ensemble. »
        {f}说：“别担心，我们一起找。”
        They asked the neighbours and searched {w}.
        Ils ont interrogé les voisins et cherché {w}.
        他们问了邻居，又{w}找了一遍。
        {n:the} had seen everything and led them to the old mill.
        {n:le} avait tout vu et les a conduits au vieux moulin.
        {n}什么都看见了，把他们带到了旧磨坊。
        {f} had an idea and took {q:a} out of a bag.
        {f} a eu une idée et a sorti {q:un} d'un sac.
        {f}想出一个办法，从包里拿出{q:一}。
        They waited for an hour, but nothing happened.
        Ils ont attendu une heure, mais rien ne s'est passé.
        他们等了一个小时，什么也没有发生。"""),
    triples("""
        At last they found {o:the} {w}.
        Enfin ils ont retrouvé {o:le} {w}.
        最后，他们{w}找到了{o}。
        {p} laughed and thanked {f} with all {p:his|her} heart.
        {p} a ri et a remercié {f} de tout cœur.
        {p}笑了，衷心地感谢{f}。
        Since that day, {p} and {f} have been the best of friends.
        Depuis ce jour, {p} et {f} sont inséparables.
        从那天起，{p}和{f}成了最好的朋友。
        In the evening they ate soup together and told stories.
        Le soir, ils ont mangé une soupe ensemble et se sont raconté des histoires.
        晚上，他们一起喝汤，讲故事。
        {p} understood that {o:a} is worth less than a friend.
        {p} a compris {o:qu'un} vaut moins que l'amitié.
        {p}明白了，{o:一}比不上一个朋友。
        {p:He|She} put {o:the} on the table and slept well.
        {p:Il|Elle} a posé {o:le} sur la table et a bien dormi.
        {p:他|她}把{o}放在桌上，睡了一个好觉。"""),
)

DIALOGUE = triples("""
    Do you like {a}?
    Est-ce que tu aimes {a:le} ?
    你喜欢{a}吗？
    Yes, but I prefer {b}.
    Oui, mais je préfère {b:le}.
    喜欢，不过我更喜欢{b}。
    Where did you find {o:the}?
    Où as-tu trouvé {o:le} ?
    你在哪里找到{o:这}的？
    I saw it {w}, next to {q:a}.
    Je {o:l'ai vu|l'ai vue} {w}, à côté {q:d'un}.
    我{w}看见的，旁边还有{q:一}。
    Will you come to {c} with me?
    Viendras-tu à {c} avec moi ?
    你愿意和我一起去{c}吗？
    Gladly, I have never been there.
    Volontiers, je n'y suis jamais allé{p:|e}.
    当然愿意，我从来没去过。
    What do you do for a living?
    Que fais-tu dans la vie ?
    你是做什么工作的？
    I am {j:a}, and I like my work.
    Je suis {j} et j'aime mon travail.
    我是{j:一}，我喜欢我的工作。
    Can you lend me {o:the}?
    Peux-tu me prêter {o:le} ?
    你能把{o}借给我吗？
    Of course, but bring it back tomorrow.
    Bien sûr, mais rends-{o:le|la}-moi demain.
    当然可以，不过明天要还给我。
    Who told you about {g:the}?
    Qui t'a parlé {g:du} ?
    谁跟你说起{g}的？
    It was {r}, who works there.
    C'est {r}, qui y travaille.
    是{r}，{r:他|她}在那里工作。""")

ABOUT_TERM = triples("""
    People in {c} have known the word “{t}” for a long time.
    À {c}, le mot « {t} » est connu depuis longtemps.
    {c}的人们很早就知道“{t}”这个词。
    Many schoolchildren learn the word “{t}” in their first years.
    Beaucoup d'écoliers apprennent le mot « {t} » dès les premières années.
    许多小学生在头几年就学到“{t}”这个词。
    {f} explained the word “{t}” to {p} with {o:a}.
    {f} a expliqué le mot « {t} » à {p} à l'aide {o:d'un}.
    {f}用{o:一}给{p}解释了“{t}”。
    There is an exhibition about it in {c}.
    Une exposition à {c} y est consacrée.
    {c}有一个相关的展览。
    {p} wrote a book on this subject.
    {p} a écrit un livre sur ce sujet.
    {p}写过一本这方面的书。
    {g:the} teaches this subject to young people.
    {g:le} enseigne ce sujet aux jeunes.
    {g}给年轻人讲解这个题目。""")
DEFINITION = triples("""
    {t:any} is {m}.
    {t:any} est {m}.
    {t}是{m}。""")[0]
INVENTION = triples("""
    The {t} is {m}.
    Le {t} est {m}.
    {t}是{m}。""")[0]

CITY = triples("""
    {c} is a city in {k}.
    {c} est une ville {k:en}.
    {c}是{k}的一座城市。
    Many visitors come to {c} in spring.
    Beaucoup de visiteurs viennent à {c} au printemps.
    春天有很多游客来到{c}。
    The trains from {c} leave early in the morning.
    Les trains {c:de} partent tôt le matin.
    从{c}出发的火车一大早就开了。
    {g:the} has its seat in {c}.
    {g:le} a son siège à {c}.
    {g}的总部在{c}。
    {p} was born in {c} on {d}.
    {p} est né{p:|e} à {c} le {d}.
    {p}{d}出生在{c}。
    On Saturdays, people buy {q:a} or {o:a} at the market.
    Le samedi, on achète {q:un} ou {o:un} au marché.
    星期六，人们在市场上买{q:一}或者{o:一}。""")

# News: the three facts (who, what, where), spread differently by each plan; {h} stands for any of the fillers.
NEWS_PLANS = (
    triples("""
        {h}
        {h}
        {h}
        In {c}, {g:the} {v:past} {o:a} on {d}.
        À {c}, {g:le} a {v:participle} {o:un} le {d}.
        {d}，{g}在{c}{v}了{o:一}。"""),
    triples("""
        {h}
        {h}
        {h}
        People gathered in {c} on {d} to hear the news.
        On s'est réuni à {c} le {d} pour entendre la nouvelle.
        {d}，人们聚集在{c}等待消息。
        It came from {g:the}, which {v:past} {o:a}.
        Elle est venue {g:du}, qui a {v:participle} {o:un}.
        消息来自{g}，他们{v}了{o:一}。"""),
    triples("""
        For three years, the team of {g:the} had worked hard.
        Pendant trois ans, l'équipe {g:du} avait beaucoup travaillé.
        三年来，{g}的团队一直在努力。
        {h}
        {h}
        {h}
        On {d}, it {v:past} {o:a}.
        Le {d}, elle a {v:participle} {o:un}.
        {d}，他们{v}了{o:一}。
        The event took place in {c}.
        L'événement a eu lieu à {c}.
        活动地点在{c}。"""),
    triples("""
        “We have waited a long time for this day,” said {p} on {d} in {c}.
        « Nous avons longtemps attendu ce jour », a dit {p} le {d} à {c}.
        {d}，{p}在{c}说：“这一天我们等了很久。”
        {p:He|She} speaks for {g:the}.
        {p:Il|Elle} parle au nom {g:du}.
        {p:他|她}代表{g}。
        {h}
        {h}
        {h}
        The organisation {v:past} {o:a}.
        L'organisation a {v:participle} {o:un}.
        这家单位{v}了{o:一}。"""),
)
HEADLINE = triples("""
    {g:the} {v:third} {o:a} in {c}
    {g:le} {v:il} {o:un} à {c}
    {g}在{c}{v}{o:一}""")[0]
NEWS_FILLERS = triples("""
    The weather was mild and the streets were full.
    Le temps était doux et les rues étaient pleines.
    天气温和，街上人很多。
    Two years ago, the same plan had failed in {e}.
    Il y a deux ans, le même projet avait échoué à {e}.
    两年前，同样的计划在{e}失败了。
    {f}, {j:a} from {e}, came to see it.
    {f}, {j} {e:de}, est venu{f:|e} voir.
    来自{e}的{j}{f}也来到现场。
    Several newspapers from {e} had already written about it.
    Plusieurs journaux {e:de} en avaient déjà parlé.
    {e}的几家报纸已经报道过这件事。
    The visitors asked many questions.
    Les visiteurs ont posé beaucoup de questions.
    来宾们提出了许多问题。
    The mayor promised to help.
    Le maire a promis son aide.
    市长答应提供帮助。
    The work cost less than expected.
    Le travail a coûté moins cher que prévu.
    花费比预想的要少。
    “This is only a beginning,” said {r}.
    « Ce n'est qu'un début », a dit {r}.
    {r}说：“这只是一个开始。”""")

# A paragraph's sentence that names another topic's things, so that one word alone does not give the topic away.
DISTRACTORS = triples("""
    Before that, {p} had worked for years as {j:a}.
    Avant cela, {p} avait travaillé des années comme {j}.
    在那以前，{p}当过多年{j}。
    Nobody talked about {o:the} any more that day.
    Ce jour-là, personne ne parlait plus {o:du}.
    那天，再也没有人谈起{o}。
    A neighbour, {j:a}, watched for a while.
    Quelqu'un du quartier, {j} de métier, a regardé un moment.
    一位当{j}的邻居看了一会儿。
    In the same newspaper there was a short article about {o:a}.
    Dans le même journal, il y avait un petit article sur {o:un}.
    同一份报纸上还有一篇关于{o:一}的短文。""")

# Facts with the questions that they answer: slot -> question.
FACTS = tuple(
    (fact, dict(zip(slots, questions, strict=True)))
    for slots, (fact, *questions) in (
        ("pcod", triples("""
            {p} {v:past} {o:a} in {c} on {d}.
            {p} a {v:participle} {o:un} à {c} le {d}.
            {p}{d}在{c}{v}了{o:一}。
            Who {v:past} {o:a}?
            Qui a {v:participle} {o:un} ?
            谁{v}了{o:一}？
            Where did {p} {v:base} {o:a}?
            Où est-ce {p:que} a {v:participle} {o:un} ?
            {p}在哪里{v}了{o:一}？
            What did {p} {v:base} in {c}?
            Qu'est-ce {p:que} a {v:participle} à {c} ?
            {p}在{c}{v}了什么？
            When did {p} {v:base} {o:a}?
            Quand est-ce {p:que} a {v:participle} {o:un} ?
            {p}什么时候{v}了{o:一}？""")),
        ("pgc", triples("""
            {p} works for {g:the} in {c}.
            {p} travaille pour {g:le} à {c}.
            {p}在{c}的{g}工作。
            Who works for {g:the}?
            Qui travaille pour {g:le} ?
            谁在{g}工作？
            Which organisation does {p} work for?
            Pour quelle organisation travaille {p} ?
            {p}在哪个单位工作？
            In which city does {p} work?
            Dans quelle ville travaille {p} ?
            {p}在哪个城市工作？""")),
        ("pjc", triples("""
            {p} is {j:a} and lives in {c}.
            {p} est {j} et habite à {c}.
            {p}是{j:一}，住在{c}。
            Who lives in {c}?
            Qui habite à {c} ?
            谁住在{c}？
            What is {p}'s job?
            Quel est le métier {p:de} ?
            {p}的职业是什么？
            Where does {p} live?
            Où habite {p} ?
            {p}住在哪里？""")),
        ("pfwd", triples("""
            On {d}, {p} met {f} {w}.
            Le {d}, {p} a rencontré {f} {w}.
            {d}，{p}{w}遇见了{f}。
            Who met {f}?
            Qui a rencontré {f} ?
            谁遇见了{f}？
            Whom did {p} meet?
            Qui est-ce {p:que} a rencontré ?
            {p}遇见了谁？
            Where did {p} meet {f}?
            Où est-ce {p:que} a rencontré {f} ?
            {p}在哪里遇见了{f}？
            When did {p} meet {f}?
            Quand est-ce {p:que} a rencontré {f} ?
            {p}什么时候遇见了{f}？""")),
    )
)  # fmt: skip
WHAT_IS = triples("""
    What is {t:any}?
    Qu'est-ce {t:what} ?
    什么是{t}？""")[0]
WHAT_IS_INVENTION = triples("""
    What is the {t}?
    Qu'est-ce que le {t} ?
    什么是{t}？""")[0]

NAMED = triples("""
    {p} travels to {c}
    {p} voyage à {c}
    {p}去{c}旅游
    {p} went from {c} to {e} with {f}
    {p} est allé{p:|e} {c:de} à {e} avec {f}
    {p}和{f}从{c}去了{e}
    {g:the} opened an office in {c} on {d}
    {g:le} a ouvert un bureau à {c} le {d}
    {g}{d}在{c}开设了办公室
    {p} has worked for {g:the} since {d}
    {p} travaille pour {g:le} depuis le {d}
    {p}从{d}起在{g}工作
    On {d}, {p} left {c}
    Le {d}, {p} a quitté {c}
    {d}，{p}离开了{c}
    {j:the} {p} gave {f} {o:a}
    {j:le} {p} a donné {o:un} à {f}
    {j}{p}送给{f}{o:一}
    {g:the} and {h:the} signed an agreement
    {g:le} et {h:le} ont signé un accord
    {g}和{h}签订了协议
    In {c}, everyone knows {p}, the director of {g:the}
    À {c}, tout le monde connaît {p}, à la tête {g:du}
    在{c}，人人都认识{g}的负责人{p}
    {p} was born in {c} and lives in {e}
    {p} est né{p:|e} à {c} et habite à {e}
    {p}出生在{c}，住在{e}
    We saw {o:a} {w}, but nobody bought it
    Nous avons vu {o:un} {w}, mais personne ne l'a {o:acheté|achetée}
    我们{w}看见了{o:一}，可是没有人买
    {c} is warmer than {e} in winter
    Il fait plus chaud à {c} qu'à {e} en hiver
    冬天{c}比{e}暖和
    “I love {a},” said {p} to {f}
    « J'aime {a:le} », a dit {p} à {f}
    {p}对{f}说：“我喜欢{a}。”
    Next year {p} wants to go to {c} to study {a}
    L'année prochaine, {p} veut aller à {c} pour étudier {a:le}
    明年{p}想去{c}学习{a}
    A report by {g:the} says that {c} is growing quickly
    Selon un rapport {g:du}, {c} grandit vite
    {g}的报告说，{c}发展很快
    {f} waited for {p} at the station in {c}
    {f} a attendu {p} à la gare {c:de}
    {f}在{c}的车站等{p}
    {p} takes the train to {c} tomorrow
    {p} prend le train pour {c} demain
    {p}明天坐火车去{c}""")
