/** Every text of the page in both languages, and numbers as each of them writes them. */

export const WORDS = {
  en: {
    skip: "Skip to the answer",
    model: "Model",
    language: "Language",
    mode: "What to ask",
    run: "Run",
    running: "Running …",
    stop: "Stop",
    clear: "Clear",
    answer: "Answer",
    examples: "Try an example",
    nothingYet: "Type a text or choose an example. The answer appears here.",
    runs: "Earlier runs",
    runsNote: "The last 20, kept in the memory of this tab only.",
    again: "Try again",
    loading: "The server is loading its models …",
    key: "Access key",
    keyNeeded: "This server answers only with its key. It stays in the memory of this tab.",
    useKey: "Continue",
    unreachable: "The server does not answer. Is it still running?",
    retryAfter: "Try again in {seconds} s.",
    stopped: "Stopped.",

    titleClassification: "Which label fits?",
    titlePair: "How do two texts relate?",
    titleMultilabel: "Which labels apply?",
    titleRegression: "What score does it get?",
    titleMatching: "How close are texts in meaning?",
    titleTagging: "Who and what is named?",
    titleSpan: "Where does a text answer a question?",
    titleChoice: "Which choice is right?",
    titleGeneration: "What comes of a text?",
    titlePretrained: "What belongs in the gap?",
    kindClassification: "classification",
    kindMultilabel: "several labels",
    kindRegression: "regression",
    kindMatching: "matching",
    kindMining: "matching",
    kindTagging: "tagging",
    kindSpan: "answers in texts",
    kindChoice: "multiple choice",
    kindGeneration: "generation",
    kindPretrained: "pretrained",
    factLabels: "{count} labels",
    factTokens: "reads {count} tokens",
    factVersion: "version {version}",

    formatRun: "Keras model",
    formatOnnx: "ONNX",
    formatSavedModel: "SavedModel",
    formatSavedModelText: "SavedModel of texts",

    modeOne: "One text",
    modeMany: "Many lines",
    modePair: "Two texts",
    modeSeveral: "Several texts",
    modeMasks: "Fill gaps",

    fieldText: "Text",
    fieldTextA: "First text",
    fieldTextB: "Second text",
    fieldQuestion: "Question",
    fieldContext: "Text to search",
    fieldChoices: "Choices, one a line",
    fieldChoiceContext: "Context",
    optional: "optional",
    fieldMany: "Texts, one a line",
    fieldManyPairs: "Pairs, one a line, a tab between the texts",
    fieldSeveral: "Texts, one a line, two to eight",
    hintMasks: "Write [MASK] where a word is missing.",
    openFile: "Open a file …",
    swap: "Swap the texts",
    bothWays: "Ask the other way round too",
    insertMask: "Insert [MASK]",
    emptyField: "Write something here.",
    tooFew: "Write at least two lines.",
    tooMany: "These are {count} lines; at most {most} are compared.",
    noMaskHere: "A text with [MASK] has no vector: leave [MASK] out.",
    noSecondText: "Line {line} has no tab between two texts.",

    unsure: "Unsure: no label has more than half of the probability.",
    allLabels: "Show all {count} labels",
    fewLabels: "Show the first {count}",
    firstToSecond: "First → second",
    secondToFirst: "Second → first",
    threshold: "Threshold",
    labelsAbove: "{count} of {all} labels at or above {threshold}",
    noLabels: "No label",
    score: "Score",
    number: "No.",
    prediction: "Prediction",
    confidence: "Confidence",
    downloadTable: "Download as TSV",
    answered: "{count} of {all} lines answered",

    noEntities: "Nothing is named in this text.",
    legend: "Kinds of names",
    entity: "Name",
    type: "Kind",
    place: "Characters",
    probability: "Probability",
    copyList: "Copy the list",
    entitiesFound: "{count} names found",

    noAnswer: "The text has no answer",
    candidates: "Candidates",
    inContext: "In the text",
    chosen: "chosen",

    gap: "Gap {number}",
    filled: "With the gaps filled",
    useFilled: "Use as input",
    fillWith: "Fill gap {number} with {token}, {probability}",
    vector: "A vector of {count} numbers, length 1",
    copyVector: "Copy the vector",
    cosine: "Cosine",
    nearest: "Nearest to",
    matrix: "Cosine of each pair",

    parameters: "How it is written",
    parameterMaxNewTokens: "Most tokens",
    parameterNumBeams: "Beams",
    parameterTemperature: "Drawn: temperature",
    parameterTopP: "Drawn: top p",
    generated: "Generated text",
    hypotheses: "All hypotheses",
    copyText: "Copy the text",
    charactersPerSecond: "{count} characters, {rate} a second",

    timing: "Time",
    queue: "queue",
    tokenize: "tokenize",
    compute: "compute",
    roundTrip: "{total} ms from click to answer",
    compared: "{count} texts compared",
    tokens: "{count} of {most} tokens",
    truncated: "Cut: the text is longer than the {most} tokens that the model reads. Its end played no part.",
    copyCurl: "Copy as curl",
    copied: "Copied",
    raw: "Raw JSON",
  },
  zh: {
    skip: "跳到结果",
    model: "模型",
    language: "语言",
    mode: "提问方式",
    run: "运行",
    running: "运行中……",
    stop: "停止",
    clear: "清空",
    answer: "结果",
    examples: "试试示例",
    nothingYet: "输入文本或选择一个示例，结果会显示在这里。",
    runs: "历史记录",
    runsNote: "最近 20 次，只保存在本标签页的内存中。",
    again: "重试",
    loading: "服务器正在加载模型……",
    key: "访问密钥",
    keyNeeded: "此服务器需要密钥。密钥只保存在本标签页的内存中。",
    useKey: "继续",
    unreachable: "服务器没有响应。它还在运行吗？",
    retryAfter: "请在 {seconds} 秒后重试。",
    stopped: "已停止。",

    titleClassification: "属于哪个标签？",
    titlePair: "两段文本是什么关系？",
    titleMultilabel: "适用哪些标签？",
    titleRegression: "能得多少分？",
    titleMatching: "文本的意思有多接近？",
    titleTagging: "文中提到了谁、提到了什么？",
    titleSpan: "答案在文中何处？",
    titleChoice: "哪个选项正确？",
    titleGeneration: "由文本生成什么？",
    titlePretrained: "空缺处该填什么？",
    kindClassification: "分类",
    kindMultilabel: "多标签",
    kindRegression: "回归",
    kindMatching: "匹配",
    kindMining: "匹配",
    kindTagging: "序列标注",
    kindSpan: "抽取式问答",
    kindChoice: "多项选择",
    kindGeneration: "文本生成",
    kindPretrained: "预训练",
    factLabels: "{count} 个标签",
    factTokens: "最多读取 {count} 个词元",
    factVersion: "版本 {version}",

    formatRun: "Keras 模型",
    formatOnnx: "ONNX 模型",
    formatSavedModel: "SavedModel 模型",
    formatSavedModelText: "SavedModel 文本模型",

    modeOne: "单条文本",
    modeMany: "多行批量",
    modePair: "两段文本",
    modeSeveral: "多段文本",
    modeMasks: "填空",

    fieldText: "文本",
    fieldTextA: "第一段文本",
    fieldTextB: "第二段文本",
    fieldQuestion: "问题",
    fieldContext: "查找答案的文本",
    fieldChoices: "选项，每行一个",
    fieldChoiceContext: "背景文本",
    optional: "可不填",
    fieldMany: "文本，每行一条",
    fieldManyPairs: "文本对，每行一对，中间用制表符分隔",
    fieldSeveral: "文本，每行一条，二到八条",
    hintMasks: "在缺词的地方写 [MASK]。",
    openFile: "打开文件……",
    swap: "交换两段文本",
    bothWays: "同时反向提问",
    insertMask: "插入 [MASK]",
    emptyField: "请在这里输入内容。",
    tooFew: "请至少输入两行。",
    tooMany: "共有 {count} 行，最多比较 {most} 行。",
    noMaskHere: "带有 [MASK] 的文本没有向量，请去掉 [MASK]。",
    noSecondText: "第 {line} 行的两段文本之间没有制表符。",

    unsure: "没有把握：没有一个标签的概率超过一半。",
    allLabels: "显示全部 {count} 个标签",
    fewLabels: "只显示前 {count} 个",
    firstToSecond: "第一段 → 第二段",
    secondToFirst: "第二段 → 第一段",
    threshold: "阈值",
    labelsAbove: "{all} 个标签中有 {count} 个不低于 {threshold}",
    noLabels: "没有标签",
    score: "得分",
    number: "序号",
    prediction: "预测",
    confidence: "置信度",
    downloadTable: "下载 TSV 表格",
    answered: "已回答 {all} 行中的 {count} 行",

    noEntities: "这段文本中没有提到任何名称。",
    legend: "名称类型",
    entity: "名称",
    type: "类型",
    place: "字符位置",
    probability: "概率",
    copyList: "复制列表",
    entitiesFound: "找到 {count} 个名称",

    noAnswer: "文中没有答案",
    candidates: "候选答案",
    inContext: "在文中的位置",
    chosen: "选中",

    gap: "空缺 {number}",
    filled: "填好之后",
    useFilled: "用作输入",
    fillWith: "用 {token} 填空缺 {number}，{probability}",
    vector: "{count} 维向量，长度为 1",
    copyVector: "复制向量",
    cosine: "余弦",
    nearest: "最接近的文本：",
    matrix: "两两之间的余弦",

    parameters: "怎样写",
    parameterMaxNewTokens: "最多词元数",
    parameterNumBeams: "束宽",
    parameterTemperature: "抽样：温度",
    parameterTopP: "抽样：top p",
    generated: "生成的文本",
    hypotheses: "全部候选",
    copyText: "复制文本",
    charactersPerSecond: "{count} 个字符，每秒 {rate} 个",

    timing: "耗时",
    queue: "排队",
    tokenize: "分词",
    compute: "计算",
    roundTrip: "从点击到结果共 {total} ms",
    compared: "已比较 {count} 段文本",
    tokens: "{count} / {most} 个词元",
    truncated: "已截断：文本超过模型能读取的 {most} 个词元，末尾的内容没有起作用。",
    copyCurl: "复制为 curl 命令",
    copied: "已复制",
    raw: "原始 JSON",
  },
};

const LOCALES = { en: "en", zh: "zh-CN" };
let language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

/** Return the locale in which the page speaks, such as "zh-CN". */
export const locale = () => LOCALES[language];

/** Let the page speak "en" or "zh". */
export function speak(name) {
  language = name;
  document.documentElement.lang = locale();
}

/** Return whether the page speaks a language. */
export const speaks = (name) => language === name;

/** Return a text in the language of the page, values in the place of their {names}. */
export function say(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Return the text of a key that is made of a prefix and a name, or what stands in its place where there is none. */
export function sayOf(prefix, name, otherwise = name) {
  const key = prefix + name.replace(/(?:^|_)(\w)/g, (_, letter) => letter.toUpperCase());
  return key in WORDS[language] ? say(key) : otherwise;
}

/** Return a share of one as percent, with a digit behind the point. */
export function percent(share) {
  const form = { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 };
  return new Intl.NumberFormat(locale(), form).format(share);
}

/** Return a number with `digits` digits behind the point. */
export function fixed(value, digits) {
  const form = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(locale(), form).format(value);
}

/** Return a number with at most `digits` digits behind the point. */
export function decimal(value, digits = 2) {
  return new Intl.NumberFormat(locale(), { maximumFractionDigits: digits }).format(value);
}
