"""How the report looks, in light and in dark."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c2128;--soft:#5a6572;--card:#f5f7f9;
--edge:#dbe0e6;--accent:#2869ad;--gap:#c9405a;--s0:#2869ad;--s1:#d9711c;--s2:#2f8f4e;--s3:#8a4fb5;
--s4:#c9405a;--s5:#1c8c95;--s6:#9a7400;--s7:#d1549c;--s8:#6b7683;--s9:#5b5fd6}
@media(prefers-color-scheme:dark){:root{--page:#11151a;--ink:#e4e8ec;--soft:#98a3af;--card:#191f26;
--edge:#2d353f;--accent:#6cabeb;--gap:#f07d92;--s0:#6cabeb;--s1:#f2a15c;--s2:#6cc98a;--s3:#c095e4;
--s4:#f07d92;--s5:#5cc8d1;--s6:#d9b94a;--s7:#ef93c6;--s8:#a3adb8;--s9:#9da0f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main,header,footer{max-width:1100px;margin:0 auto;padding:0 24px}
header{padding-top:32px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:19px;margin:40px 0 12px;padding-bottom:6px;border-bottom:1px solid var(--edge)}
h3{font-size:15px;margin:20px 0 8px}
p{margin:8px 0;max-width:75ch}
.soft,small,footer{color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:14px 0 20px;font-size:14px}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}
.tile{background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:10px 14px;
display:flex;flex-direction:column;min-width:0}
.tile span{font-size:13px;color:var(--soft)}
.tile strong{font-size:22px;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
.tile small{font-size:12px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,360px),1fr));gap:16px}
.chart{margin:0;padding:12px 14px;background:var(--card);border:1px solid var(--edge);
border-radius:8px;min-width:0;max-width:640px}
.chart figcaption{font-weight:600;margin-bottom:6px}
svg{display:block;width:100%;height:auto}
svg text{font-size:11px;fill:var(--soft);font-variant-numeric:tabular-nums}
svg .name{font-size:12px}
.grid{stroke:var(--edge);stroke-width:1}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke:var(--c)}
.dots{stroke-width:5;stroke-linecap:round;stroke-opacity:.6}
.dashed{stroke-dasharray:5 4;--c:var(--soft)!important}
.strong{stroke-width:3;--c:var(--ink)!important}
.bar{fill:var(--accent);background:var(--accent)}
.gap{fill:var(--gap);fill-opacity:.35;background:color-mix(in srgb,var(--gap) 35%,transparent)}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin-top:6px;font-size:12.5px;color:var(--soft)}
.key i{display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle;
border-radius:2px;background:var(--c)}
.key i.bar{background:var(--accent);height:10px}.key i.gap{height:10px;
background:color-mix(in srgb,var(--gap) 35%,transparent)}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}
.s5{--c:var(--s5)}.s6{--c:var(--s6)}.s7{--c:var(--s7)}.s8{--c:var(--s8)}.s9{--c:var(--s9)}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;font-size:14px}
th,td{padding:5px 12px;text-align:left;border-bottom:1px solid var(--edge);white-space:nowrap}
th{font-weight:600;color:var(--soft)}
.n{text-align:right;font-variant-numeric:tabular-nums}
.confusion td,.confusion th{padding:4px 6px;text-align:center;border:0;min-width:38px}
.confusion tbody th{text-align:right;color:var(--ink);font-weight:400}
.confusion thead th{vertical-align:bottom}
.confusion thead span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:130px;
overflow:hidden;text-overflow:ellipsis;font-weight:400;color:var(--ink)}
.confusion td{font-variant-numeric:tabular-nums;border-radius:3px;
background:color-mix(in srgb,var(--accent) calc(var(--f)*85%),var(--card))}
.confusion td.full{color:var(--page)}
.confusion table{border-collapse:separate;border-spacing:2px}
.confusion caption{caption-side:top;text-align:left;color:var(--soft);padding-bottom:6px}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:3px 18px;margin:8px 0;
font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:600px){dl{grid-template-columns:1fr}dd{margin-bottom:6px}
main,header,footer{padding-left:14px;padding-right:14px}}
details{margin:12px 0}summary{cursor:pointer;color:var(--accent)}
.mistakes{display:flex;flex-wrap:wrap;gap:14px}
.mistakes figure{margin:0;width:206px}
.mistakes figure>div{display:flex;gap:4px}
.mistakes img{width:101px;height:101px;object-fit:contain;background:var(--card);
border-radius:4px}
.sharp{image-rendering:pixelated}
.wide{max-width:100%;background:#fff;border-radius:8px}
.mistakes figcaption{font-size:13px;line-height:1.35;margin-top:4px}
.mistakes figcaption small{display:block;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
footer{margin-top:48px;padding-bottom:32px;font-size:13px}
@media print{nav{display:none}section{break-inside:avoid-page}}
"""
"""The style sheet."""
