"""The words of the sample's small world: English, French and Chinese forms stand side by side.

Everything here was written for this project. A row reads `English | French gender | Chinese measure-word`; the gender
is m, f or p (plural), and the measure word 个 goes without saying. Names that are kept for the test sets stand in tables
of their own, called `HELD_OUT_...`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Noun:
    """A thing, a person, a place or a date, with what is needed to put it into a sentence of any of the languages."""

    en: str
    fr: str
    zh: str
    gender: str = "m"
    measure: str = "个"
    proper: bool = False  # takes no article
    mass: bool = False  # cannot be counted: `gravity`, not `a gravity`
    kind: str = ""  # PER, LOC, ORG or DATE for a named entity

    def but(self, adjective: Adjective) -> Noun:
        """The noun with an adjective: `red book`, `livre rouge`, `红色的书`; old, new and beautiful change before vowels."""
        m, f, before_vowel = adjective.fr
        form = f if self.gender == "f" else before_vowel if starts_with_vowel(self.fr) and adjective.first else m
        french = f"{form} {self.fr}" if adjective.first else f"{self.fr} {form}"
        return replace(self, en=f"{adjective.en} {self.en}", fr=french, zh=adjective.zh + self.zh)


@dataclass(frozen=True)
class Adjective:
    """An adjective; `fr` is masculine, feminine, and masculine before a vowel; `first` puts it before the noun."""

    en: str
    fr: tuple[str, str, str]
    zh: str
    first: bool


@dataclass(frozen=True)
class Verb:
    """A transitive verb: English base, third person and past; French present by person, participle and infinitive."""

    base: str
    third: str
    past: str
    fr: dict[str, str]  # "je", "il", "nous", "vous", "ils" -> present
    participle: str
    infinitive: str
    zh: str
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """Who acts, as a grammatical subject: `person` chooses the French form of a `Verb`."""

    en: str
    fr: str
    zh: str
    person: str


@dataclass(frozen=True)
class Topic:
    """One field of life: who works in it, what they handle, what makes news (verb -> objects), which bodies are in it."""

    jobs: tuple[tuple[Noun, Noun], ...]  # masculine, feminine
    things: tuple[Noun, ...]
    news: tuple[tuple[Verb, tuple[Noun, ...]], ...]
    organisations: tuple[Noun, ...]  # with {} for the name's stem
    sentences: tuple[tuple[str, str, str], ...]


def starts_with_vowel(french: str) -> bool:
    """Whether `le`, `de` and `que` elide before a word; every h of the vocabulary is mute."""
    return french[0].lower() in "aàâeéèêiîoôuhœ"


def rows(table: str) -> list[list[str]]:
    """The cells of a table: rows end with a semicolon or the line, cells stand between bars."""
    return [[cell.strip() for cell in row.split("|")] for row in re.split("[;\n]", table.strip())]


def nouns(table: str, **fixed: object) -> tuple[Noun, ...]:
    """`red book | livre rouge m | 红书 本` as nouns."""
    found = []
    for en, french, chinese in rows(table):
        fr, gender = french.rsplit(" ", 1)
        zh, measure = [*chinese.split(" "), "个"][:2]
        found.append(Noun(en, fr, zh, gender, measure, **fixed))
    return tuple(found)


def names(table: str, kind: str) -> tuple[Noun, ...]:
    """`London | Londres | 伦敦` as proper nouns; a row of two cells has the same English and French form."""
    return tuple(Noun(row[0], row[-2], row[-1], proper=True, kind=kind) for row in rows(table))


def adverbials(table: str) -> tuple[Noun, ...]:
    """`in the garden | dans le jardin | 在花园里` as words that are used as they stand."""
    return names(table, "")


def triples(table: str) -> tuple[tuple[str, str, str], ...]:
    """Sentence patterns: English, French, Chinese on three lines one after another."""
    lines = [line.strip() for line in table.strip().split("\n") if line.strip()]
    return tuple(zip(lines[::3], lines[1::3], lines[2::3], strict=True))


def jobs(table: str) -> tuple[tuple[Noun, Noun], ...]:
    """`singer | chanteur chanteuse | 歌手` as the nouns for a man and for a woman; / parts forms of several words."""
    found = []
    for en, french, zh in rows(table):
        man, woman = [form.strip() for form in french.split("/")]
        found.append((Noun(en, man, zh, "m", "名"), Noun(en, woman, zh, "f", "名")))
    return tuple(found)


def verbs(table: str) -> tuple[Verb, ...]:
    """`read reads read | lis lit lisons lisez lisent lu lire | 读 | classes of objects`."""
    found = []
    for english, french, zh, objects in rows(table):
        *forms, participle, infinitive = french.split(" ")
        present = dict(zip(("je", "il", "nous", "vous", "ils"), forms, strict=True))
        base, third, past = (form.replace("_", " ") for form in english.split(" "))
        found.append(Verb(base, third, past, present, participle, infinitive, zh, tuple(objects.split(" "))))
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------------
# People, places, organisations. Latin names carry their Chinese transcription, Chinese ones their pinyin.

GIVEN = {
    "f": rows("""
        Marie | 玛丽; Emma | 艾玛; Alice | 爱丽丝; Julie | 朱莉; Sophie | 索菲; Clara | 克拉拉; Nina | 尼娜; Sarah | 萨拉
        Anna | 安娜; Laura | 劳拉; Rose | 罗丝; Jeanne | 让娜; Mila | 米拉; Eva | 伊娃; Rita | 丽塔; Grace | 格蕾丝
        Irene | 艾琳; Diana | 黛安娜; Vera | 薇拉; Lucy | 露西; Lisa | 丽莎; Claire | 克莱尔; Susan | 苏珊"""),
    "m": rows("""
        Paul | 保罗; Lucas | 卢卡斯; Thomas | 托马斯; Louis | 路易; Adam | 亚当; Peter | 彼得; Simon | 西蒙; David | 大卫
        Martin | 马丁; Victor | 维克多; Oscar | 奥斯卡; Noah | 诺亚; Felix | 菲利克斯; Tom | 汤姆; James | 詹姆斯; Daniel | 丹尼尔
        Robert | 罗伯特; Max | 马克斯; Eric | 埃里克; Ben | 本恩; Augustin | 奥古斯丁"""),
}
HELD_OUT_GIVEN = {
    "f": rows(
        "Camille | 卡米拉; Olivia | 奥利维亚; Martha | 玛莎; Lena | 莱娜; Sylvia | 西尔维亚; Dora | 多拉; Paula | 保拉; Tessa | 特莎"
    ),
    "m": rows(
        "Antoine | 安托万; Marco | 马可; Leo | 利奥; Andrew | 安德鲁; Gabriel | 加布里埃尔; Nicolas | 尼古拉; Sam | 萨姆; Raymond | 雷蒙"
    ),
}
SURNAMES = rows("""
    Durand | 杜兰; Moreau | 莫罗; Bernard | 贝尔纳; Petit | 珀蒂; Laurent | 洛朗; Garnier | 加尼耶; Faure | 福尔; Roussel | 鲁塞尔
    Baker | 贝克; Carter | 卡特; Walker | 沃克; Turner | 特纳; Cooper | 库珀; Morgan | 摩根; Bennett | 贝内特; Foster | 福斯特
    Rossi | 罗西; Weber | 韦伯; Novak | 诺瓦克; Silva | 席尔瓦; Marlow | 马洛; Delorme | 德洛姆; Ashby | 阿什比; Keller | 凯勒""")
HELD_OUT_SURNAMES = rows("""
    Lambert | 兰伯特; Fontaine | 方丹; Mercier | 梅西耶; Barton | 巴顿; Sutton | 萨顿; Barlow | 巴洛; Marini | 马里尼; Vallet | 瓦莱
    Berger | 贝尔热; Elwin | 埃尔文""")

# Chinese given names: women's and men's; a full name is surname + given name, so one that is held out is never seen whole.
CHINESE_SURNAMES = rows("""
    王 | Wang; 李 | Li; 张 | Zhang; 刘 | Liu; 陈 | Chen; 杨 | Yang; 赵 | Zhao; 黄 | Huang; 周 | Zhou; 吴 | Wu; 徐 | Xu; 孙 | Sun
    马 | Ma; 朱 | Zhu; 胡 | Hu; 林 | Lin; 郭 | Guo; 何 | He; 高 | Gao; 罗 | Luo""")
CHINESE_GIVEN = {
    "f": rows("""
        丽 | Li; 芳 | Fang; 静 | Jing; 雪 | Xue; 梅 | Mei; 兰 | Lan; 玲 | Ling; 红 | Hong; 小红 | Xiaohong; 美玲 | Meiling; 雨欣 | Yuxin
        晓燕 | Xiaoyan; 秀英 | Xiuying; 诗涵 | Shihan; 梦琪 | Mengqi; 佳怡 | Jiayi; 春花 | Chunhua; 冬梅 | Dongmei; 子涵 | Zihan
        思远 | Siyuan; 秋月 | Qiuyue; 文静 | Wenjing; 二妹 | Ermei; 云 | Yun"""),
    "m": rows("""
        伟 | Wei; 强 | Qiang; 磊 | Lei; 军 | Jun; 洋 | Yang; 勇 | Yong; 杰 | Jie; 涛 | Tao; 明 | Ming; 刚 | Gang; 平 | Ping; 四 | Si
        五 | Wu; 小明 | Xiaoming; 建国 | Jianguo; 志强 | Zhiqiang; 浩然 | Haoran; 宇轩 | Yuxuan; 大海 | Dahai; 天佑 | Tianyou
        俊杰 | Junjie; 国庆 | Guoqing; 海涛 | Haitao; 家豪 | Jiahao; 立新 | Lixin; 文博 | Wenbo"""),
}
HELD_OUT_CHINESE_GIVEN = {
    "f": rows(
        "雨涵 | Yuhan; 静怡 | Jingyi; 海燕 | Haiyan; 梦雪 | Mengxue; 春梅 | Chunmei; 月红 | Yuehong; 诗琪 | Shiqi; 怡 | Yi"
    ),
    "m": rows(
        "三 | San; 志明 | Zhiming; 国强 | Guoqiang; 建军 | Jianjun; 文轩 | Wenxuan; 天宇 | Tianyu; 俊豪 | Junhao; 轩 | Xuan"
    ),
}

# Country by country: its cities. The preposition en, au or aux follows from the gender.
COUNTRIES = nouns(
    """
    France | France f | 法国; England | Angleterre f | 英国; China | Chine f | 中国; Germany | Allemagne f | 德国; Italy | Italie f | 意大利
    Spain | Espagne f | 西班牙; Japan | Japon m | 日本; Canada | Canada m | 加拿大; Russia | Russie f | 俄罗斯; Brazil | Brésil m | 巴西
    the United States | États-Unis p | 美国; Egypt | Égypte f | 埃及""",
    proper=True,
)
CITIES = {
    "France": names("Paris | 巴黎; Nice | 尼斯; Bordeaux | 波尔多; Strasbourg | 斯特拉斯堡; Nantes | 南特", "LOC"),
    "England": names(
        "London | Londres | 伦敦; Manchester | 曼彻斯特; Oxford | 牛津; Liverpool | 利物浦; Leeds | 利兹", "LOC"
    ),
    "China": names(
        """Beijing | Pékin | 北京; Shanghai | 上海; Guangzhou | Canton | 广州; Xi'an | Xi'an | 西安; Wuhan | 武汉; Shenzhen | 深圳
        Kunming | 昆明; Qingdao | 青岛; Chongqing | 重庆; Taiyuan | 太原; Lianyungang | 连云港""",
        "LOC",
    ),
    "Germany": names("Berlin | 柏林; Munich | 慕尼黑; Cologne | 科隆", "LOC"),
    "Italy": names("Rome | 罗马; Venice | Venise | 威尼斯; Turin | 都灵", "LOC"),
    "Spain": names("Madrid | 马德里; Barcelona | Barcelone | 巴塞罗那; Seville | Séville | 塞维利亚", "LOC"),
    "Japan": names("Tokyo | 东京; Osaka | 大阪; Kyoto | 京都", "LOC"),
    "Canada": names("Montreal | Montréal | 蒙特利尔; Toronto | 多伦多; Vancouver | 温哥华", "LOC"),
    "Russia": names("Moscow | Moscou | 莫斯科", "LOC"),
    "Brazil": names("Brasilia | 巴西利亚", "LOC"),
    "the United States": names("Chicago | 芝加哥; Washington | 华盛顿; Seattle | 西雅图", "LOC"),
    "Egypt": names("Alexandria | Alexandrie | 亚历山大", "LOC"),
}
HELD_OUT_CITIES = names(
    """
    Lyon | 里昂; Marseille | 马赛; Toulouse | 图卢兹; Dublin | 都柏林; Boston | 波士顿; Milan | 米兰; Lisbon | Lisbonne | 里斯本
    Nanjing | Nankin | 南京; Chengdu | 成都; Suzhou | 苏州; Xiamen | 厦门; Dalian | 大连; Geneva | Genève | 日内瓦; Oslo | 奥斯陆""",
    "LOC",
)

STEMS = rows("""
    Norvex | 诺维; Altoria | 奥托; Brimond | 博盟; Calder | 凯德; Delvan | 德万; Estrel | 星源; Farlow | 远洋; Galden | 金川
    Ivorel | 银河; Junova | 新华光; Kestrin | 科信; Lumera | 明光; Marivel | 海维; Orland | 东方蓝; Pelican | 白鸟; Quanta | 天量
    Rivage | 长河; Solaris | 阳光; Tervan | 大地; Umbra | 云影; Velmont | 绿山; Westmark | 西马克; Zephyr | 清风; Boreal | 北极光""")
HELD_OUT_STEMS = rows("""
    Arcelon | 长风; Belvista | 光明; Corvane | 金山; Dunmore | 东海; Falconer | 飞鸟; Halden | 新星; Montrose | 青云; Nimbus | 白云
    Oberon | 天河; Steller | 星光""")

# ---------------------------------------------------------------------------------------------------------------------
# Things, with the adjectives that suit them.

ADJECTIVES = {
    en: Adjective(en, tuple((french.split(" ") * 3)[:3]), zh, place == "first")
    for en, french, zh, place in rows("""
        red | rouge | 红色的 | after; blue | bleu bleue | 蓝色的 | after; green | vert verte | 绿色的 | after; white | blanc blanche | 白色的 | after
        black | noir noire | 黑色的 | after; yellow | jaune | 黄色的 | after; small | petit petite | 小 | first; big | grand grande | 大 | first
        old | vieux vieille vieil | 旧的 | first; new | nouveau nouvelle nouvel | 新的 | first; beautiful | beau belle bel | 漂亮的 | first
        heavy | lourd lourde | 沉重的 | after; strange | étrange | 奇怪的 | after; interesting | intéressant intéressante | 有趣的 | after
        long | long longue | 长长的 | first; funny | drôle | 好笑的 | after; sweet | sucré sucrée | 甜甜的 | after; hot | chaud chaude | 热的 | after
        delicious | délicieux délicieuse | 美味的 | after; expensive | cher chère | 昂贵的 | after; calm | calme | 安静的 | after
        clever | malin maligne | 聪明的 | after; nice | joli jolie | 好看的 | first; simple | simple | 简单的 | after""")
}  # fmt: skip

OBJECTS = {
    "book": nouns("book | livre m | 书 本; notebook | cahier m | 笔记本 本; magazine | magazine m | 杂志 本; dictionary | dictionnaire m | 词典 本; album | album m | 画册 本"),
    "text": nouns("""
        letter | lettre f | 信 封; poem | poème m | 诗 首; article | article m | 文章 篇; story | histoire f | 故事; novel | roman m | 小说 部
        message | message m | 短信 条; speech | discours m | 演讲稿 篇; newspaper | journal m | 报纸 份"""),
    "food": nouns("""
        apple | pomme f | 苹果; cake | gâteau m | 蛋糕; orange | orange f | 橙子; sandwich | sandwich m | 三明治; soup | soupe f | 汤 碗
        salad | salade f | 沙拉 份; pear | poire f | 梨子; egg | œuf m | 鸡蛋; pizza | pizza f | 披萨; omelette | omelette f | 煎蛋饼
        pie | tarte f | 馅饼; pancake | crêpe f | 薄饼 张; peach | pêche f | 桃子; tomato | tomate f | 西红柿; banana | banane f | 香蕉 根"""),
    "ware": nouns("""
        hat | chapeau m | 帽子 顶; coat | manteau m | 大衣 件; scarf | écharpe f | 围巾 条; shirt | chemise f | 衬衫 件; dress | robe f | 裙子 条
        bag | sac m | 书包; umbrella | parapluie m | 雨伞 把; bicycle | vélo m | 自行车 辆; clock | horloge f | 时钟; lamp | lampe f | 台灯 盏
        chair | chaise f | 椅子 把; table | table f | 桌子 张; camera | caméra f | 摄像机 台; phone | téléphone m | 手机 部; guitar | guitare f | 吉他 把
        piano | piano m | 钢琴 架; violin | violon m | 小提琴 把; box | boîte f | 盒子; key | clé f | 钥匙 把; ball | ballon m | 皮球
        map | carte f | 地图 幅; painting | tableau m | 油画 幅; car | voiture f | 汽车 辆; ring | bague f | 戒指 枚; basket | panier m | 篮子
        bottle | bouteille f | 瓶子; cup | tasse f | 杯子; knife | couteau m | 小刀 把; plate | assiette f | 盘子; mirror | miroir m | 镜子 面"""),
    "animal": nouns("""
        cat | chat m | 猫 只; dog | chien m | 狗 只; bird | oiseau m | 鸟 只; horse | cheval m | 马 匹; rabbit | lapin m | 兔子 只
        sheep | mouton m | 绵羊 只; duck | canard m | 鸭子 只; turtle | tortue f | 乌龟 只; squirrel | écureuil m | 松鼠 只; goat | chèvre f | 山羊 只"""),
    "drawable": nouns("""
        tree | arbre m | 树 棵; flower | fleur f | 花 朵; house | maison f | 房子 座; boat | bateau m | 船 艘; bridge | pont m | 桥 座
        castle | château m | 城堡 座; mountain | montagne f | 山 座; lake | lac m | 湖; rose | rose f | 玫瑰 朵; tower | tour f | 大厦 座; island | île f | 岛 座"""),
}  # fmt: skip
SUITS = {
    "book": "red blue green black small big old new beautiful heavy interesting",
    "text": "long interesting funny strange new beautiful",
    "food": "small big delicious hot sweet",
    "ware": "red blue green white black yellow small big old new beautiful expensive nice",
    "animal": "small big white black calm clever",
    "drawable": "small big beautiful white strange red nice",
}
VERBS = verbs("""
    read reads read | lis lit lisons lisez lisent lu lire | 读 | book text
    write writes wrote | écris écrit écrivons écrivez écrivent écrit écrire | 写 | text
    buy buys bought | achète achète achetons achetez achètent acheté acheter | 买 | book ware food animal
    sell sells sold | vends vend vendons vendez vendent vendu vendre | 卖 | book ware food
    eat eats ate | mange mange mangeons mangez mangent mangé manger | 吃 | food
    see sees saw | vois voit voyons voyez voient vu voir | 看见 | animal drawable
    find finds found | trouve trouve trouvons trouvez trouvent trouvé trouver | 找到 | book ware text animal
    lose loses lost | perds perd perdons perdez perdent perdu perdre | 弄丢 | book ware
    paint paints painted | peins peint peignons peignez peignent peint peindre | 画 | animal drawable
    draw draws drew | dessine dessine dessinons dessinez dessinent dessiné dessiner | 画 | animal drawable ware
    carry carries carried | porte porte portons portez portent porté porter | 搬 | ware
    clean cleans cleaned | nettoie nettoie nettoyons nettoyez nettoient nettoyé nettoyer | 擦 | ware
    choose chooses chose | choisis choisit choisissons choisissez choisissent choisi choisir | 挑选 | book ware food
    prepare prepares prepared | prépare prépare préparons préparez préparent préparé préparer | 准备 | food text
    hide hides hid | cache cache cachons cachez cachent caché cacher | 藏 | book ware
    forget forgets forgot | oublie oublie oublions oubliez oublient oublié oublier | 忘拿 | book ware
    repair repairs repaired | répare répare réparons réparez réparent réparé réparer | 修理 | ware
    feed feeds fed | nourris nourrit nourrissons nourrissez nourrissent nourri nourrir | 喂 | animal
    admire admires admired | admire admire admirons admirez admirent admiré admirer | 欣赏 | drawable
    look_for looks_for looked_for | cherche cherche cherchons cherchez cherchent cherché chercher | 寻找 | book ware animal""")
OUTDOORS = adverbials("""
    in the garden | dans le jardin | 在花园里; at the market | au marché | 在市场上; in the park | dans le parc | 在公园里
    near the river | près de la rivière | 在河边; on the beach | sur la plage | 在沙滩上; in the street | dans la rue | 在街上
    in the forest | dans la forêt | 在森林里; behind the church | derrière l'église | 在教堂后面; under the tree | sous l'arbre | 在树下
    in the village | au village | 在村子里; on the bridge | sur le pont | 在桥上; in front of the hotel | devant l'hôtel | 在旅馆前面""")
INDOORS = adverbials("""
    in the kitchen | dans la cuisine | 在厨房里; at school | à l'école | 在学校; at home | à la maison | 在家里; at the station | à la gare | 在车站
    in the library | à la bibliothèque | 在图书馆里; at the museum | au musée | 在博物馆里; in the office | au bureau | 在办公室里
    in the shop | dans le magasin | 在商店里; at the hospital | à l'hôpital | 在医院里; in the bedroom | dans la chambre | 在卧室里""")
PLACES = OUTDOORS + INDOORS
TIMES = {
    "present": adverbials("every day | tous les jours | 每天; today | aujourd'hui | 今天; on Sundays | le dimanche | 星期天; in the morning | le matin | 早上"),
    "past": adverbials("yesterday | hier | 昨天; last week | la semaine dernière | 上周; last night | hier soir | 昨晚; this morning | ce matin | 今天早上; on Monday | lundi | 星期一"),
    "future": adverbials("tomorrow | demain | 明天; next week | la semaine prochaine | 下周; tonight | ce soir | 今晚; next month | le mois prochain | 下个月"),
}  # fmt: skip
PRONOUNS = tuple(
    Subject(*row)
    for row in rows("""
        I | je | 我 | je; he | il | 他 | il; she | elle | 她 | il; we | nous | 我们 | nous; you | vous | 你 | vous; they | ils | 他们 | ils
        my brother | mon frère | 我哥哥 | il; my mother | ma mère | 我妈妈 | il; my friends | mes amis | 我的朋友们 | ils
        the children | les enfants | 孩子们 | ils; our neighbour | notre voisin | 我们的邻居 | il; her father | son père | 她爸爸 | il
        the old lady | la vieille dame | 那位老太太 | il; the students | les étudiants | 学生们 | ils; my sister | ma sœur | 我妹妹 | il""")
)

# What one loves, studies, teaches or talks about.
ACTIVITIES = nouns("""
    cooking | cuisine f | 烹饪; music | musique f | 音乐; dancing | danse f | 跳舞; swimming | natation f | 游泳; reading | lecture f | 阅读
    painting | peinture f | 绘画; singing | chant m | 唱歌; gardening | jardinage m | 园艺; photography | photographie f | 摄影
    cycling | cyclisme m | 骑车; fishing | pêche f | 钓鱼; hiking | randonnée f | 徒步; programming | programmation f | 编程; chess | échecs p | 国际象棋
    mathematics | mathématiques p | 数学; history | histoire f | 历史; science | science f | 科学; theatre | théâtre m | 戏剧; cinema | cinéma m | 电影
    football | football m | 足球; tennis | tennis m | 网球; skiing | ski m | 滑雪; sailing | voile f | 帆船; drawing | dessin m | 画画
    writing | écriture f | 写作; climbing | escalade f | 攀岩; sewing | couture f | 缝纫; philosophy | philosophie f | 哲学; biology | biologie f | 生物学
    astronomy | astronomie f | 天文学; chemistry | chimie f | 化学; geography | géographie f | 地理; architecture | architecture f | 建筑学
    poetry | poésie f | 诗歌; sculpture | sculpture f | 雕塑; yoga | yoga m | 瑜伽; judo | judo m | 柔道; robotics | robotique f | 机器人学
    grammar | grammaire f | 语法; physics | physique f | 物理; economics | économie f | 经济学; languages | langues p | 语言; basketball | basket m | 篮球
    medicine | médecine f | 医学; law | droit m | 法律; acting | comédie f | 表演""")
# The French preposition decides the article that follows: j'aime la, je parle de la, je pense à la.
FEELINGS = tuple(
    (*verbs(f"{row[0]} | {row[1]} | {row[2]} | _"), row[3])
    for row in rows("""
        love loves loved | aime aime aimons aimez aiment aimé aimer | 热爱 | le
        adore adores adored | adore adore adorons adorez adorent adoré adorer | 非常喜欢 | le
        hate hates hated | déteste déteste détestons détestez détestent détesté détester | 讨厌 | le
        study studies studied | étudie étudie étudions étudiez étudient étudié étudier | 学习 | le
        teach teaches taught | enseigne enseigne enseignons enseignez enseignent enseigné enseigner | 教 | le
        prefer prefers preferred | préfère préfère préférons préférez préfèrent préféré préférer | 更喜欢 | le
        explain explains explained | explique explique expliquons expliquez expliquent expliqué expliquer | 讲解 | le
        talk_about talks_about talked_about | parle parle parlons parlez parlent parlé parler | 谈论 | du
        dream_of dreams_of dreamed_of | rêve rêve rêvons rêvez rêvent rêvé rêver | 梦想着 | du
        think_about thinks_about thought_about | pense pense pensons pensez pensent pensé penser | 想着 | au""")
)

PROFESSIONS = jobs("""
    teacher | professeur / professeure | 老师; doctor | médecin / médecin | 医生; baker | boulanger / boulangère | 面包师
    painter | peintre / peintre | 画家; singer | chanteur / chanteuse | 歌手; farmer | agriculteur / agricultrice | 农民
    nurse | infirmier / infirmière | 护士; writer | écrivain / écrivaine | 作家; lawyer | avocat / avocate | 律师; sailor | marin / marin | 水手
    gardener | jardinier / jardinière | 园丁; musician | musicien / musicienne | 音乐家; journalist | journaliste / journaliste | 记者
    bookseller | libraire / libraire | 书店老板; postal worker | facteur / factrice | 邮递员; architect | architecte / architecte | 建筑师
    dentist | dentiste / dentiste | 牙医; carpenter | menuisier / menuisière | 木匠""")

# ---------------------------------------------------------------------------------------------------------------------
# Five topics. Slots: p person, j job, o thing, c city, g organisation, d date.


def _news(verb: str, objects: str) -> tuple[Verb, tuple[Noun, ...]]:
    english, il, participle, zh = [cell.strip() for cell in verb.split("|")]
    return Verb(*english.split(" "), {"il": il}, participle, "", zh), nouns(objects)


INSTITUTE = nouns("{} Institute | Institut {} m | {}研究所; {} University | Université {} f | {}大学", kind="ORG")
COMPANY = (Noun("{}", "{}", "{}公司", proper=True, kind="ORG"),)
TOPICS = {
    "technology": Topic(
        jobs("engineer | ingénieur / ingénieure | 工程师; programmer | programmeur / programmeuse | 程序员; technician | technicien / technicienne | 技术员; designer | concepteur / conceptrice | 设计师"),
        nouns("""
            robot | robot m | 机器人; computer | ordinateur m | 电脑 台; chip | puce f | 芯片 枚; battery | batterie f | 电池 块; application | application f | 应用程序
            drone | drone m | 无人机 架; satellite | satellite m | 卫星 颗; screen | écran m | 屏幕 块; search engine | moteur de recherche m | 搜索引擎
            electric car | voiture électrique f | 电动汽车 辆; translation program | logiciel de traduction m | 翻译软件 款
            printer | imprimante f | 打印机 台; smart watch | montre connectée f | 智能手表 块; sensor | capteur m | 传感器"""),
        (
            _news("present presents presented | présente | présenté | 发布", """
                robot | robot m | 机器人 款; computer | ordinateur m | 电脑 款; chip | puce f | 芯片 款; battery | batterie f | 电池 款; drone | drone m | 无人机 款
                search engine | moteur de recherche m | 搜索引擎 款; electric car | voiture électrique f | 电动汽车 款; translation program | logiciel de traduction m | 翻译软件 款
                smart watch | montre connectée f | 智能手表 款; language model | modèle de langue m | 语言模型 款"""),
            _news("develop develops developed | développe | développé | 研发", """
                satellite | satellite m | 卫星 颗; sensor | capteur m | 传感器 种; screen | écran m | 屏幕 种; printer | imprimante f | 打印机 种; application | application f | 应用程序 款"""),
        ),
        COMPANY + INSTITUTE[:1],
        triples("""
            {j:the} tests {o:a} before it leaves the workshop.
            {j:le} teste {o:un} avant la sortie de l'atelier.
            {j}在出厂之前测试{o:一}。
            Thanks to a new chip, {o:the} starts in less than a second.
            Grâce à une nouvelle puce, {o:le} démarre en moins d'une seconde.
            有了新芯片，{o}不到一秒就能启动。
            A small error in the code stopped {o:the} for two hours.
            Une petite erreur dans le code a arrêté {o:le} pendant deux heures.
            代码里的一个小错误让{o}停了两个小时。
            {p} writes programs that control {o:a}.
            {p} écrit des programmes qui commandent {o:un}.
            {p}编写控制{o}的程序。
            The new version uses half as much electricity.
            La nouvelle version consomme deux fois moins d'électricité.
            新版本的耗电量只有原来的一半。
            {p} saved all the data and started {o:the} again.
            {p} a sauvegardé toutes les données et a redémarré {o:le}.
            {p}保存了所有数据，然后重新启动了{o}。
            Thousands of users have already tried {o:the}.
            Des milliers d'utilisateurs ont déjà essayé {o:le}.
            已经有几千名用户试用过{o}。
            The program inside {o:the} learns from examples and corrects its own mistakes.
            Le programme {o:du} apprend à partir d'exemples et corrige ses propres erreurs.
            {o}里的程序从例子中学习，并改正自己的错误。
            At {g:the}, {j:a} is building {o:a} for schools.
            Chez {g:le}, {j:un} construit {o:un} pour les écoles.
            在{g}，{j:一}正在为学校制作{o:一}。"""),
    ),
    "sports": Topic(
        jobs("player | joueur / joueuse | 球员; coach | entraîneur / entraîneuse | 教练; swimmer | nageur / nageuse | 游泳选手; runner | coureur / coureuse | 长跑选手; goalkeeper | gardien / gardienne | 守门员; cyclist | cycliste / cycliste | 自行车手"),
        nouns("""
            match | match m | 比赛 场; race | course f | 赛跑 场; tournament | tournoi m | 锦标赛 场; final | finale f | 决赛 场; championship | championnat m | 冠军赛 场
            competition | compétition f | 竞赛 场; derby | derby m | 德比战 场; marathon | marathon m | 马拉松 场"""),
        (
            _news("win wins won | remporte | remporté | 赢得", """
                final | finale f | 决赛 场; tournament | tournoi m | 锦标赛 场; championship | championnat m | 冠军赛 场; silver medal | médaille d'argent f | 银牌 枚; gold medal | médaille d'or f | 金牌 枚"""),
            _news("organise organises organised | organise | organisé | 举办", "marathon | marathon m | 马拉松 场; cycling race | course cycliste f | 自行车赛 场; swimming competition | compétition de natation f | 游泳比赛 场; ski race | course de ski f | 滑雪比赛 场"),
        ),
        nouns("{} Club | Club {} m | {}俱乐部", kind="ORG"),
        triples("""
            {j:the} ran very fast in the second half of {o:the}.
            {j:le} a couru très vite dans la seconde moitié {o:du}.
            {j}在{o}的后半段跑得很快。
            {p} scored twice and the crowd shouted with joy.
            {p} a marqué deux fois et le public a crié de joie.
            {p}两次得分，观众们高兴地大喊。
            After {o:the}, {j:the} thanked the whole team.
            Après {o:le}, {j:le} a remercié toute l'équipe.
            {o}结束后，{j}感谢了全队。
            {p} trains four times a week for {o:the}.
            {p} s'entraîne quatre fois par semaine pour {o:le}.
            {p}每周为{o}训练四次。
            The team lost by one point in the last minute.
            L'équipe a perdu d'un point à la dernière minute.
            球队在最后一分钟以一分之差输了。
            {j:the} hurt a knee and could not finish {o:the}.
            {j:le} s'est blessé{j:|e} au genou et n'a pas pu finir {o:le}.
            {j}膝盖受伤，没能完成{o}。
            The stadium was full for {o:the} against {g:the}.
            Le stade était plein pour {o:le} contre {g:le}.
            {o}对阵{g}，体育场里坐满了人。
            {p} broke the record by three seconds.
            {p} a battu le record de trois secondes.
            {p}以三秒的优势打破了纪录。
            The referee stopped {o:the} because of the rain.
            L'arbitre a arrêté {o:le} à cause de la pluie.
            裁判因为下雨中止了{o}。"""),
    ),
    "cooking": Topic(
        jobs("cook | cuisinier / cuisinière | 厨师; baker | boulanger / boulangère | 面包师; pastry cook | pâtissier / pâtissière | 糕点师; waiter | serveur / serveuse | 服务员"),
        nouns("""
            soup | soupe f | 汤 碗; cake | gâteau m | 蛋糕; sauce | sauce f | 酱汁 份; fish | poisson m | 鱼 条; chicken | poulet m | 鸡肉 份; salad | salade f | 沙拉 份
            omelette | omelette f | 煎蛋饼; stew | ragoût m | 炖菜 份; pie | tarte f | 馅饼; bread roll | petit pain m | 小面包; dessert | dessert m | 甜点 份; rice dish | plat de riz m | 米饭料理 份"""),
        (
            _news("open opens opened | ouvre | ouvert | 开设", "food market | marché couvert m | 美食市场 座; bakery | boulangerie f | 面包房 家; tea room | salon de thé m | 茶馆 家; cooking class | cours de cuisine m | 烹饪班; pastry shop | pâtisserie f | 糕点店 家"),
            _news("create creates created | crée | créé | 推出", "vegetable soup | soupe de légumes f | 蔬菜汤 款; chocolate cake | gâteau au chocolat m | 巧克力蛋糕 款; fish dish | plat de poisson m | 鱼料理 款; apple pie | tarte aux pommes f | 苹果馅饼 款"),
        ),
        nouns("{} Restaurant | Restaurant {} m | {}餐厅; {} School | École {} f | {}烹饪学校", kind="ORG"),
        triples("""
            {j:the} adds salt, pepper and a little lemon to {o:the}.
            {j:le} ajoute du sel, du poivre et un peu de citron {o:au}.
            {j}往{o}里加盐、胡椒和一点柠檬。
            {o:the} must rest for ten minutes before serving.
            {o:le} doit reposer dix minutes avant d'être servi{o:|e}.
            {o}上桌之前要放十分钟。
            {p} cuts the onions and melts the butter in a pan.
            {p} coupe les oignons et fait fondre le beurre dans une poêle.
            {p}切好洋葱，在锅里把黄油化开。
            {p} learned to make {o:a} from a grandmother's recipe.
            {p} a appris à faire {o:un} avec une recette de grand-mère.
            {p}照着奶奶的菜谱学会了做{o}。
            Everyone at the table asked for more.
            Tout le monde à table en a redemandé.
            桌上的每个人都想再来一份。
            {j:the} tastes {o:the} and smiles.
            {j:le} goûte {o:le} et sourit.
            {j}尝了尝{o}，笑了。
            The oven must be very hot for {o:the}.
            Le four doit être très chaud pour {o:le}.
            做{o}的时候，烤箱要很热。
            Fresh herbs give {o:the} a better taste.
            Les herbes fraîches donnent meilleur goût {o:au}.
            新鲜的香草让{o}更有味道。
            The kitchen of {g:the} smells of garlic and warm bread.
            La cuisine {g:du} sent l'ail et le pain chaud.
            {g}的厨房里飘着大蒜和热面包的香味。"""),
    ),
    "travel": Topic(
        jobs("tourist | touriste / touriste | 游客; guide | guide / guide | 导游; pilot | pilote / pilote | 飞行员; traveller | voyageur / voyageuse | 旅行者; driver | conducteur / conductrice | 司机"),
        nouns("""
            train | train m | 火车 列; hotel | hôtel m | 旅馆 家; beach | plage f | 沙滩 片; island | île f | 岛 座; castle | château m | 城堡 座; valley | vallée f | 山谷
            harbour | port m | 港口; temple | temple m | 寺庙 座; viewpoint | point de vue m | 观景台; old town | vieille ville f | 老城 座"""),
        (
            _news("open opens opened | ouvre | ouvert | 开通", "railway line | ligne de train f | 铁路线 条; night train | train de nuit m | 夜间列车 趟; bus line | ligne de bus f | 公交线路 条; air route | ligne aérienne f | 航线 条"),
            _news("build builds built | construit | construit | 修建", "hotel | hôtel m | 旅馆 家; airport | aéroport m | 机场 座; harbour | port m | 港口 座; campsite | camping m | 露营地 处; visitor centre | centre d'accueil m | 游客中心"),
        ),
        nouns("{} Airline | Compagnie {} f | {}航空公司; {} Travel Agency | Agence {} f | {}旅行社", kind="ORG"),
        triples("""
            {j:the} packed a suitcase and left for {c} at dawn.
            {j:le} a fait une valise et est parti{j:|e} pour {c} à l'aube.
            {j}收拾好行李，天一亮就出发去{c}。
            From {o:the} one can see the whole coast.
            Depuis {o:le}, on voit toute la côte.
            从{o}可以看到整个海岸。
            {p} spent three days in {c} and took many pictures.
            {p} a passé trois jours à {c} et a pris beaucoup de photos.
            {p}在{c}待了三天，拍了很多照片。
            The ticket to {c} costs less in autumn.
            Le billet pour {c} coûte moins cher en automne.
            秋天去{c}的票更便宜。
            {j:the} showed the group {o:a} that few people know.
            {j:le} a montré au groupe {o:un} que peu de gens connaissent.
            {j}带大家看了{o:一}，那里很少有人知道。
            {p} forgot the passport at the reception desk.
            {p} a oublié le passeport à la réception.
            {p}把护照忘在了前台。
            Visitors from many countries come to see {o:the}.
            Des visiteurs de nombreux pays viennent voir {o:le}.
            许多国家的客人都来看{o}。
            {g:the} offers a cheap trip to {c} this summer.
            {g:le} propose un voyage bon marché à {c} cet été.
            今年夏天{g}推出了去{c}的特价行程。
            We reached {o:the} after a long walk in the mountains.
            Nous avons atteint {o:le} après une longue marche en montagne.
            我们在山里走了很久才到{o}。"""),
    ),
    "science": Topic(
        jobs("scientist | scientifique / scientifique | 科学家; biologist | biologiste / biologiste | 生物学家; chemist | chimiste / chimiste | 化学家; astronomer | astronome / astronome | 天文学家; researcher | chercheur / chercheuse | 研究员"),
        nouns("""
            star | étoile f | 恒星 颗; planet | planète f | 行星 颗; cell | cellule f | 细胞; fossil | fossile m | 化石 块; molecule | molécule f | 分子 种
            insect | insecte m | 昆虫 种; plant | plante f | 植物 种; virus | virus m | 病毒 种; comet | comète f | 彗星 颗; mineral | minéral m | 矿物 种; galaxy | galaxie f | 星系"""),
        (
            _news("discover discovers discovered | découvre | découvert | 发现", "planet | planète f | 行星 颗; fossil | fossile m | 化石 块; molecule | molécule f | 分子 种; insect | insecte m | 昆虫 种; comet | comète f | 彗星 颗; plant | plante f | 植物 种; mineral | minéral m | 矿物 种"),
            _news("publish publishes published | publie | publié | 发表", "study of bees | étude sur les abeilles f | 关于蜜蜂的研究 项; study of the oceans | étude sur les océans f | 关于海洋的研究 项; report on the climate | rapport sur le climat m | 关于气候的报告 份; study of volcanoes | étude sur les volcans f | 关于火山的研究 项"),
        ),
        INSTITUTE,
        triples("""
            {j:the} measured {o:the} with great care.
            {j:le} a mesuré {o:le} avec beaucoup de soin.
            {j}非常仔细地测量了{o}。
            The experiment was repeated ten times with the same result.
            L'expérience a été répétée dix fois avec le même résultat.
            这个实验重复了十次，结果都一样。
            {p} wants to know how {o:a} changes over time.
            {p} veut savoir comment {o:un} change avec le temps.
            {p}想知道{o:一}是怎样随着时间变化的。
            Under the microscope, {p} saw something new.
            Au microscope, {p} a vu quelque chose de nouveau.
            {p}在显微镜下看到了新的东西。
            The theory explains why {o:the} is so rare.
            La théorie explique pourquoi {o:le} est si rare.
            这个理论解释了{o}为什么这么少见。
            {j:the} compared {o:the} with older samples.
            {j:le} a comparé {o:le} à des échantillons plus anciens.
            {j}把{o}和更早的样本做了比较。
            The results were published after two years of research.
            Les résultats ont été publiés après deux ans de recherche.
            经过两年的研究，结果终于发表了。
            A team at {g:the} observed {o:a} for the first time.
            Une équipe {g:du} a observé {o:un} pour la première fois.
            {g}的小组第一次观察到{o:一}。
            Nobody can yet prove this hypothesis about {o:the}.
            Personne ne peut encore prouver cette hypothèse sur {o:le}.
            还没有人能证明关于{o}的这个假设。"""),
    ),
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Definitions: term, then what it is. A term of the form "a telescope" is countable, "gravity" is not.

DEFINITIONS_TABLE = """
    a telescope | télescope m | 望远镜 | an instrument for looking at distant stars | un instrument qui sert à observer les étoiles lointaines | 用来观察遥远星星的仪器
    a thermometer | thermomètre m | 温度计 | a tool that measures temperature | un outil qui mesure la température | 测量温度的工具
    a library | bibliothèque f | 图书馆 | a place where people borrow books | un lieu où l'on emprunte des livres | 人们借书的地方
    a volcano | volcan m | 火山 | a mountain that can throw out hot rock | une montagne qui peut cracher de la roche brûlante | 会喷出炽热岩石的山
    a desert | désert m | 沙漠 | a region where it hardly ever rains | une région où il ne pleut presque jamais | 几乎从不下雨的地区
    an island | île f | 岛 | a piece of land with water on every side | une terre entourée d'eau | 四面都是水的陆地
    a recipe | recette f | 菜谱 | a list of steps for preparing a dish | une liste d'étapes pour préparer un plat | 做一道菜的步骤说明
    an orchestra | orchestre m | 管弦乐团 | a large group of musicians who play together | un grand groupe de musiciens qui jouent ensemble | 一起演奏的一大群音乐家
    a bridge | pont m | 桥 | a structure that lets people cross a river | une construction qui permet de traverser une rivière | 让人们过河的建筑
    a keyboard | clavier m | 键盘 | the part of a computer on which people type | la partie d'un ordinateur sur laquelle on tape | 电脑上用来打字的部分
    a compiler | compilateur m | 编译器 | a program that translates code for a machine | un programme qui traduit du code pour une machine | 把代码翻译给机器的程序
    a search engine | moteur de recherche m | 搜索引擎 | a system that finds pages on the network | un système qui trouve des pages sur le réseau | 在网络上查找网页的系统
    an algorithm | algorithme m | 算法 | a series of exact steps that solves a problem | une suite d'étapes précises qui résout un problème | 解决问题的一系列明确步骤
    a satellite | satellite m | 卫星 | an object that turns around a planet | un objet qui tourne autour d'une planète | 绕着行星转的物体
    a magnet | aimant m | 磁铁 | a piece of metal that attracts iron | un morceau de métal qui attire le fer | 能吸引铁的金属
    a compass | boussole f | 指南针 | an instrument that shows the north | un instrument qui indique le nord | 指示北方的仪器
    a poem | poème m | 诗 | a text that plays with sounds and images | un texte qui joue avec les sons et les images | 讲究声音和画面的文字
    a novel | roman m | 小说 | a long story in prose | un long récit en prose | 篇幅较长的故事
    a referee | arbitre m | 裁判 | a person who makes sure that the rules are followed | une personne qui veille au respect des règles | 保证大家遵守规则的人
    a marathon | marathon m | 马拉松 | a running race of about forty-two kilometres | une course à pied d'environ quarante-deux kilomètres | 大约四十二公里的长跑比赛
    a microscope | microscope m | 显微镜 | an instrument that makes tiny things visible | un instrument qui rend visibles les choses minuscules | 让人看见微小东西的仪器
    a battery | batterie f | 电池 | a device that stores electricity | un appareil qui conserve l'électricité | 储存电能的装置
    a clock | horloge f | 时钟 | a machine that shows the time | une machine qui indique l'heure | 显示时间的机器
    an umbrella | parapluie m | 雨伞 | a light roof that people carry in the rain | un petit toit que l'on porte sous la pluie | 下雨时用来遮雨的用具
    gravity | gravité f | 重力 | the force that pulls things to the ground | la force qui attire les choses vers le sol | 把东西拉向地面的力
    photosynthesis | photosynthèse f | 光合作用 | the way in which plants make food from light | la manière dont les plantes se nourrissent de lumière | 植物利用光制造养分的过程
    astronomy | astronomie f | 天文学 | the science of stars and planets | la science des étoiles et des planètes | 研究恒星和行星的科学
    biology | biologie f | 生物学 | the science of living things | la science des êtres vivants | 研究生命的科学
    robotics | robotique f | 机器人学 | the art of building machines that move by themselves | l'art de construire des machines qui bougent toutes seules | 制造自动机器的学问
    programming | programmation f | 编程 | the work of writing instructions for a computer | le travail qui consiste à écrire des instructions pour un ordinateur | 给计算机写指令的工作
    electricity | électricité f | 电 | a form of energy that lights our houses | une forme d'énergie qui éclaire nos maisons | 照亮我们房屋的一种能量
    democracy | démocratie f | 民主 | a form of government in which the people decide | une forme de gouvernement où le peuple décide | 由人民做决定的政治制度
    evaporation | évaporation f | 蒸发 | the change of water into vapour | le passage de l'eau à l'état de vapeur | 水变成水汽的过程
    grammar | grammaire f | 语法 | the set of rules of a language | l'ensemble des règles d'une langue | 一种语言的规则
    cryptography | cryptographie f | 密码学 | the science of secret messages | la science des messages secrets | 研究秘密信息的科学
    machine translation | traduction automatique f | 机器翻译 | the use of a computer to translate texts | l'emploi d'un ordinateur pour traduire des textes | 用计算机翻译文章的技术
    image recognition | reconnaissance d'images f | 图像识别 | a technique that lets a computer understand pictures | une technique qui permet à un ordinateur de comprendre des images | 让计算机看懂图片的技术
    agriculture | agriculture f | 农业 | the work of growing plants and keeping animals | le travail qui consiste à cultiver des plantes et à élever des animaux | 种植植物和饲养动物的工作"""
HELD_OUT_DEFINITIONS_TABLE = """
    a lighthouse | phare m | 灯塔 | a tower that guides ships at night | une tour qui guide les bateaux la nuit | 夜里给船只指路的高塔
    a museum | musée m | 博物馆 | a building where old and beautiful things are shown | un bâtiment où l'on montre des choses anciennes et belles | 展示古老而美丽的东西的建筑
    a dictionary | dictionnaire m | 词典 | a book that explains the meaning of words | un livre qui explique le sens des mots | 解释词语意思的书
    a sensor | capteur m | 传感器 | a device that notices changes around it | un appareil qui remarque les changements autour de lui | 能感觉到周围变化的装置
    a database | base de données f | 数据库 | a system that keeps information in order | un système qui garde des informations en ordre | 有序保存信息的系统
    a galaxy | galaxie f | 星系 | a huge group of stars | un immense groupe d'étoiles | 由许多恒星组成的巨大群体
    geography | géographie f | 地理学 | the science of places and landscapes | la science des lieux et des paysages | 研究地方和风景的科学
    chemistry | chimie f | 化学 | the science of substances and their changes | la science des substances et de leurs transformations | 研究物质及其变化的科学
    artificial intelligence | intelligence artificielle f | 人工智能 | a technique that lets machines learn and reason | une technique qui permet aux machines d'apprendre et de raisonner | 让机器学习和推理的技术
    speech recognition | reconnaissance vocale f | 语音识别 | a technique that turns speech into text | une technique qui transforme la parole en texte | 把说的话变成文字的技术"""


def definitions(table: str) -> tuple[tuple[Noun, Noun], ...]:
    """Pairs of a term and what it is; an article before the English term says that it can be counted."""
    found = []
    for en, french, zh, *meaning in rows(table):
        fr, gender = french.rsplit(" ", 1)
        countable = en.startswith(("a ", "an "))
        term = Noun(en.split(" ", 1)[1] if countable else en, fr, zh, gender, mass=not countable)
        found.append((term, Noun(*meaning, proper=True)))
    return tuple(found)


DEFINITIONS = definitions(DEFINITIONS_TABLE)
HELD_OUT_DEFINITIONS = definitions(HELD_OUT_DEFINITIONS_TABLE)

# Invented machines: a name from two syllables and a purpose, so that a definition cannot be known by heart.
SYLLABLES = (rows("Vel | 维; Tor | 托; Mira | 米拉; Sol | 索; Kan | 坎; Lumi | 卢米; Zar | 扎; Polo | 波罗; Ren | 伦; Dax | 达"), rows("mar | 玛; dex | 德克; lin | 林; bot | 博特; via | 维亚; kor | 科; ton | 顿; nova | 诺瓦; sa | 萨; rel | 雷尔"))  # fmt: skip
PURPOSES = adverbials("""
    a small machine that cleans windows | une petite machine qui nettoie les fenêtres | 擦窗户的小机器
    a lamp that follows the reader | une lampe qui suit le lecteur | 跟着读者走的台灯
    a boat that collects plastic | un bateau qui ramasse le plastique | 收集塑料的船
    a robot that waters plants | un robot qui arrose les plantes | 给植物浇水的机器人
    a program that corrects spelling | un logiciel qui corrige l'orthographe | 改正错别字的软件
    a bicycle that folds in three seconds | un vélo qui se plie en trois secondes | 三秒钟就能折叠的自行车
    an oven that weighs the food | un four qui pèse les aliments | 会称食物重量的烤箱
    a watch that counts steps | une montre qui compte les pas | 计算步数的手表
    a drone that carries medicine | un drone qui transporte des médicaments | 运送药品的无人机
    a game that teaches mathematics | un jeu qui enseigne les mathématiques | 教数学的游戏
    a pen that records the voice | un stylo qui enregistre la voix | 能录音的笔
    a train that runs without a driver | un train qui roule sans conducteur | 没有司机的火车
    a chair that climbs stairs | une chaise qui monte les escaliers | 会爬楼梯的椅子
    a box that keeps vegetables fresh | une boîte qui garde les légumes au frais | 让蔬菜保持新鲜的盒子""")
