"""What a pilot's report says, in English and Japanese."""

PILOT_WORDS: dict[str, tuple[str, str]] = {
    "predicted": ("predicted", "予測"),
    "measured value": ("measured", "実測"),
    "ratio": ("measured / predicted", "実測 / 予測"),
    "figure": ("figure", "項目"),
    "row first token": ("seconds to the first token, one user", "最初のトークンまでの時間 (1利用者)"),
    "row slowest": ("tokens per second, slowest user", "トークン/秒 (最も遅い利用者)"),
    "row prompt sent": ("bytes sent for a prompt", "プロンプト送信量"),
    "row token sent": ("bytes sent for a token of each user", "全利用者の1トークン当たり送信量"),
    "row token received": ("bytes received for a token of each user", "全利用者の1トークン当たり受信量"),
    "row time": ("seconds for {tokens:,} tokens", "{tokens:,} トークンの時間 (秒)"),
    "row rounds": ("seconds for {rounds:,} rounds", "{rounds:,} ラウンドの時間 (秒)"),
    "row rate": ("tokens per second of all workers", "全ワーカーのトークン/秒"),
    "row updates": ("seconds for {updates:,} updates after the first", "初回後の {updates:,} 更新の時間 (秒)"),
    "row sampled": ("tokens of answers per second", "回答のトークン/秒"),
    "row bytes": ("bytes from {one} to {other}", "{one} から {other} への転送量"),
    "row bytes all": ("bytes between sites", "拠点間の転送量"),
    "as it stands": ("the swarm as it stands", "現状のスウォーム"),
    "pilot verdict": (
        "Tried for {seconds:.0f} s: {method}. Furthest from the plan: {what}, {ratio} times what was predicted.",
        "{seconds:.0f} 秒の試行: {method}。予測との差が最大の項目: {what} (予測の {ratio} 倍)。",
    ),
    "pilot stopped": (
        "Stopped after {seconds:.0f} s: {method}. Furthest from the plan: {what}, {ratio} times what was predicted.",
        "{seconds:.0f} 秒で中止: {method}。予測との差が最大の項目: {what} (予測の {ratio} 倍)。",
    ),
    "pilot nothing": (
        "Stopped before anything was measured: {method}.",
        "計測前に中止されました: {method}。",
    ),
    "pilot users": (
        "All {users} users were here, real sessions of the client library with random hidden states; embeddings and "
        "head of the model were a wait of {client:g} ms.",
        "全 {users} 利用者はこの機から、クライアントライブラリの実セッションで無作為な隠れ状態を送りました。"
        "埋め込みと出力層は {client:g} ms の待ちとしています。",
    ),
    "pilot processes": (
        "The {workers} workers were processes of this machine, one for each site, over links shaped as in the "
        "plan; speeds predicted with are those of such processes here.",
        "各拠点1台、計 {workers} 台のワーカーはこの機のプロセスで、計画どおりに絞った回線で結びました。"
        "予測に使った速度もこの機のプロセスの実測値です。",
    ),
    "pilot aligned": (
        "The trainer and {workers} rollout workers were processes of this machine, at most one worker for each site, "
        "over links shaped as in the plan; speeds predicted with are those of such processes here. The model "
        "had random weights, and all answers were as long as the plan takes them to be.",
        "学習器と {workers} 台の生成ワーカー (各拠点最大1台) はこの機のプロセスで、計画どおりに絞った回線で結びました。"
        "予測に使った速度もこの機のプロセスの実測値です。モデルの重みは無作為で、回答はすべて計画どおりの長さです。",
    ),
    "pilot changed": (
        "An update of that model changes {share:.2%} of its weights, as measured before the run: this is predicted "
        "with.",
        "このモデルの1更新で変わる重みは {share:.2%} です (試行前の実測値で、予測に使用)。",
    ),
    "pilot bytes": (
        "Bytes are those between here and the servers; what servers hand to each other is not seen from here.",
        "転送量はこの機とサーバー間のものです。サーバー同士の転送はここからは見えません。",
    ),
    "pilot own bytes": (
        "Texts were made up, as long as the plan's. Counted are rounds that all workers measured, and bytes of the "
        "method's own messages: what nodes send besides to keep in touch does not grow with the work.",
        "文章は計画と同じ長さの仮のものです。全ワーカーが計測したラウンドと、手法自体のメッセージの量を数えています。"
        "ノードが互いの状態を確かめる通信は作業量に比例しないため含みません。",
    ),
    "pilot surveyed": (
        "{count} of {servers} servers were measured by sessions; of others, and of ways, what is announced counts.",
        "{servers} 台中 {count} 台をセッションで計測し、他の機と経路は申告値を使いました。",
    ),
}
