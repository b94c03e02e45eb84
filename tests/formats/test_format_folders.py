"""Whole folders, frozen: of version 2, which is read as it was meant, and of version 3, of which the same model gives the same bytes."""

import base64
import json
import zlib

import pytest
import torch

from winnow.formats import ArtifactWriter, load, pack, read_artifact
from winnow.masks.scope import find_scope
from winnow.masks.structure import Unstructured

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "vocab_size": 12, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "max_position_embeddings": 16, "tie_word_embeddings": False,
}  # fmt: skip
VERSION_2 = """
c-rlpOLN;e5`h1TOJ_xeH^3Z{R87^?9%hewic%~*ZH_5Y5h-UfF3oS>=0gw5q(sSfW;eqe7`XxVhi)_;a>IC>*gOl#?d<m=&nEA0CXe&%=4L+8D|?re-j?f?FXmA
2xsq2UzomMif6Z6F=yjpf-~K(HR3%@g?R#bEvoguE*d)4sG3d1L&r01YU*_wws(@ywEjD=(m-)TV;>1-YxRtx|`_fl}`6Q&dE-9H$+9H4S3TfqcUc1;Oi%Q0}vcx
&4sBPKkDw1@)Q`8m~$)7bzwc;d8%0#CiUBxS%-TJo0WLIAL)xx_(mwxv$-j*)(AMr9TlG<dyFy6T&yRF@V#kNkm?DW+lcRr2xmZz29cg@Y#i+JzN%G%=4{HnOMDA
nKnsyK9KRe0~e#}7JP`~ADy;w5<Q(52ZrO}9lWU#>LxB)g5v<>5<T*BYAgr>>jRgj7}hxQ&{Sq)i;PlAVR`5d6dM@=$-EvqA?CW)*qU=J|wR6e&uXLQ%lPIE1XQE
>eMdhOu?6OO92N6Dm#Qr6yJwsa#NmbA*wLoYsbcN+)|%(i18fijWC7QrO#oL5VUfvRr%Otg$pSqvYmhGu?S4UoCVQKS1Yz&-R_S^Jcv8<z4O?{oj%-%fB^RHm%QB
iz3cIOYE0T2l{tt8&xp8e7w{v4NBVX-}OaZR^Iti*Kbu8wL@@Ux(hq!gI=fQQ*xR3_*=emM=^aEz7Qu_QP~LeLnG%CKErZ`c9Fa;d~CJ7t9j*Wy;bm#TWt=8)I8h
Fv&r-Z233{>UzEpF)^Ui<52v=a<0T3KacUgano(<m5I!=N5o)<X0dub$W)X!#h!84}L&jjsqDW~g*)A}K1~0RoSS`Gv7HJhBhBXQlVXUY&LOWxHLs%*=BS|p9G9a
cw38PL5B}pgnRA@U;5C!Eda@-Ob6r)^8C%pEKAt_~W&N}0zvQ7fr38tA<jxZfjqj4wjRNw~^fd?ZYiQ+_R7MxKMOTrb?!BHU*7$1em1TUEPNK;T_84MF0aqPq~@Q
^S|GUxv|=s#q9gpdjZ2}y|pwOAm+9W{g+hKLP_vJk+t#7T{n5>{~^xKIJcIk8WpxMKwFgX~QAR&n>Qc{yKKC8wW{^GRHdW$kpS;}|%PTQ+=#Nwuteup8kZd7RH7c
<;QuFV>5q`r&;oY8=!|=rc4cd>X1nAe-IC%T@mS?3+(+@5))DDPHK}zJB*}_56>jp3~24ieasWk6uv47&9T_20l3Ct>l>42qPn$pjDlw=4IG=RVnu1UtzVb$wW5l
V2U-2V2uF-9i$!M9*HQJ08xUK9RSWR0t?ot(-1BJD~^zdK?p(bF`*2G07VhuMh^gg9qwqgb+oZg5X7A`#7nAz6EL+90r3g~rNXt?UVAxj)J2@KNJ<7KYXwGXCUG!
YVs8)wcMkwRToG782_0Z8Vl6pLJW{}fYdv=nV}e`6uEq8TmTJ@mm_rGL^;UtSVa!{YaIuIGOzF@Cs&40(O<mRIiv<k%-N-U&ZX27L-OhZw>8wPx?snf<0jtODDqk
<3zHkq-)vkV;WL~d!)nO$ro2KLTXV|-~vZo3PSpDh^_fE??+sWKcSG}^ruCfumZx>zoc;KL;CO1YO&39Ej(zeFlx7se4XZH1dX7g$jutS@q+y+Tw*`02E31QOq7V
N0=rm=i;!Dv50h23u9yO`=Z6KyUSao1VeL5(&S#Qm%Jmu(tsvCwI{*WoGbfT@(Q4Z#X_M#RD-rKHtN6N#fbZVpza*rfX26H~8HMte?mB!$HmbFIBr)<{^58O7dXR
EJz^XT3*kzEKog)9N*F`?ana$`z@x1FV2=P?Z^zddbW~D12G%H$I~&ELvaox-VRm&SC2%>KPP}Qx=ia*!%_9dVzX|1>{sRbsGEi1=xC>c!mY!G!kd94=-_YXU_t1
ijhKBbZ$Kqj;OFIJ%Ki>(=%#Ctg!3~FAu@0UMw^Sor|f5SGN{I3LfIiW^=eh{Z#!2`+)(Q*-syjWvYG}|Ge(UZY9q_3Vj%xGd5>z&e)u>Ib(Ci=5#lwmocc(UDyv
pS~6n)_pzgB6pf-$^z(>%=FYz5xMQO1oMu0c*bzHoe>&`^A$ze-*oWb}@e%v~hz+KGy1({nny0IuzJ3PTQ?;x3=>Y-KdqAM7t<l{4t)~PQ>2l`sZ`mc8Ytp2UR7A
PeMj}iQr;$aH2E-$;Bgrv#t~Zl=irJgSRV`IhYnVWatAME|f>EPXh$wi5OX0;y>TPunZ?L79Y?IbnSfsJ?mNFiwB+@u$8IuTM7HQ|Nf}S@OSwpbk9)eX`9*9+xc#
DYi!5K$RQrF9C3>98!fg<H2KuHA#Qep)Ok_tm9r&l2R&7|!K2#zcb1gw%0T+1zW$WyP3!cGTE#>D(}iTSQ!c5SX2ljF28W}Be_e;u?<@(zVQ4Zc@I($4%iVMHsdf
-qXam<f{0z&VvLbf^}Np3ILEBQ)Y663)Zqp}1p8s6Zk_A>g^UhxzfHkx8~(m(6+I>R9K{TzOxjyfe8tU}iqcBb`ZdGNl6bA<xW^S0V+P3Z?p(Cnu}3MA}6J+7u(w
X(kN(^597J>vUrU10p}{%U4j!NpI5o>~`U7#+&qKyfL~sLWVHg)$KVHcmT!ZvJiP0vMRv@e7k85kpKN(mwFQsS8la`NcLpJj@S`9Vn^&xfIXQV?`lc6*3O0U<Hf(
89I+#I#E#ez`_o`Qz3lCeSAPE*u_JcGj@S|V&%$1MTC?x@c85n_F;(C9yfTF!TrKkZv^p~TY&;5oHUG8w_SHTIkK}>g9#tI){6Sg%7gl<DAb|EB2xxvAjDOsDfag
io3o?#fSuv%s5iH<fScIq{-VtJrLCS}~3F2q|YE(+ZnM7FFD8kkeOBD55d(LG*w8@I4i~3HQSNc=Y=C|-?e-A&3M$sr5MWbjG{Ub%YElke^Oa~WjZFeP4?%FEzQm
4D?x`;sR@T#R|Esqy^`Q)W%OZ}j0r;aX+>b_rM&=p-rn$DlZ8FUX<pVk3KE8a~1?%2zV31<#!yqW&jv*6^Zk2li(I;}r{#^^=rhuyRBqLDT9o|adF<Ua!P_3fSY^
+(w8@b-2*yt*A%gnzv-H8=fj{tG5~)u#
"""
VERSION_3 = """
c-rlpNpst{5`h1TN@vA|9bgVgs-|jc4l~Dhic+e^7IQ3-iby$=xHP~0HA!u@No`g<?`7x%O=J7I0W{E3!+03FJd5e)n?H*@8@?S3AI8~WFdo9f-KJ%5<#G{<F=l+
M(yN@`r!a$G^TjW)EMWTkALC(_^J&!7^X0dBsLGFrahgNP*?73lx((nbKAly$Vw0A7AF@f2ey=N;b#j`OVKECng)(e2DO=~x;IGL%FVZs2vq_lQ;C-5XuBD`EQzr
LeI@t*`t)$+Hk}YQwD9e!5O;m!_wb@?wTCyp83yY@dz0AAtZE_FOW!Tl-WPe!#w)!3FmYcq<vL80x=Wc_$E0(iHEMcutRy!$7LbL}%tx_PVOcEz;vXQu|81uyp%E
>*7gH2b}`8KbHPG+IJ&3)7G*EGxWuY1+MhV=7oSv0wI@7y$HZVHG2yQ0V!#Z8*|@K-$-nqgh7wJOsv`I;~MlkSc%EyAYA0<xkK5(S)`L>r{VU=Hps_|ago%m(vxK
1j2ogz0q9lzx+C1IYX!oz3$_xlSC|fS54A=~W3bNXzZG-scYN-h>%vt8q3Q4RFe2X$(dAbehL>+Dz}=`0UJ~k)CR8fkk5?bHX|=9Su~0O$_B0h!o5^tpsq9SYw<D
Jctk_k<k$8quLvT{f>A;@Q1$1WBtPS`(<rD;APOng8&h@PhtRLJx?r1$F!y~c%cY5sSQg&7{$D%7RB+N2GH^lmmT2JL>UpOvX&Z4qZU+ghpHw4>uKx;#f-o=RI}3
3d(<{c4$?|sJ|Ty=`~cUhfL&`4CV(&@037P$IS-VgzDx&VSqx|z8apNtOc*p5rzDr)Vj?=YozuHEKSNE_nnxTf9W4h+5*}St!bBWY3Em0kfl6nskC0U2NMiyJ>X~
Km*hpF|bT<J{8~SQ${x&Yh%PQya^I<%kR3;A|N|;O#_plKG-^aswZ5G>w08<{u<K6mGRDZm!lN#BYmF|Yz6k!^x)iJxdo6HyapEr#$uZ5q?pt!5+eypDVG1YVQQH
&^V0r(meH$n&-6KV0qli;+Z%q5gq<rS~WG$qf&*2`_N1OJLUOHF3FX--gT1*3o~s5i=iXEG3#L>ps*Q`wyW&d&lX(KH7!p^+L%NFb3r;{#<}c+{07Oj<Yr{N?nHH
k*#drAV>L{wxcco9LAW#*`IkCIQX#Qf#NbQZ~&c5|=uS>w=Mh=1M@|Vq`(nV2Qx)J^_4x!NgKVK_tvkT-$K1(27Xzg7k?HN;)Dg#dc3D(=-<o%^3I28tiDPjKi&(
s)QI%aR^K;=ciR&)aA1oTK?9u>@;_cPT6ugt&21cQk7J<z4nnRVD<RC$d~iS74C4++LoWDS%Ag1_#75xBRXCGjZV!Xd)z=#E|#?)w{2yaZPWa=t$P1Px2j2cyWZO
Ib+3b-h}<asWZA3A@wGJ7-hS>nvnwAmmsdOd7H!jVGf5iFZeiV*I8D~0^*t=|Mp(Hz!`cr}(G4s@8`C^zlGPa&cbTRw)MRzWyuVuiidBOxX6Uf(+6de!%e7YE(Sg
utvA9SX?a+^5nkMzU+1r^Wb_#ca*?Nb<RTI}07jZcyUPv_ci2jx`9`|OZT~bfEwVt&nIw|uz9G;D8^&YtS2-28xMQZdwE$|~mrN*${GV>UVQ2VGK$p|;CPrJ6y+?
0-C>n-XT6p<s5u*2B=1=xCndWJ>hNDFfq`{f1LdY^cPMdS!Q%fs0FmvnOL$Rct?i6IvZZfy!rsJJUVf;PL;GipVwu;PMVJ_Tz!u_zEZHmB~dt}RX}e5g;W)xL-Nq
56gXzzNRmhxbp@O#QUsdD-{vjXVb#@~#)B7pE7e7pE7e7pE7eU7SwFNkX?_-<={!kNw}r_DOwGpVTM)JV_mEXV-SzvQV}zv+sLskL|HP9rnX1zE~^l-Ra(VkNtnd
Mq5Aq-@9g-r>~!(en#C<v@N^!oB-=QCs0)aGPeKdVS(9ne&h46**O7h)<lv_!leVN31vj`#1YLSkx76=OG>@(4Co$Wc1Cl}nhM-mp@@+tQXZHR+!_-Tjy)r_3hE&
Bb9El=WKAjC#I8X(0@MV@g^XM?ZM|?pXhNt+z=w;V$5kcHGOA?2IjfzF%o)ytBTR?rt!D?R%lRdWs$f8o#DoM<+Mt4*ImM#p%5pCG1;}nS`T8J)B#uXhTIuSTkaX
OWz=N@ddWeqo@%hW*^KE8!X~>$gr_p07R;Nz*%b@F6@2SwolkbX1-Wn!nf`M@+Dhmc}CTgjplw70fa8RBf43it7Xb?cGb~;c-!AEVCqu_8|k?c{Je5+)d&6j0!o;
AZ6acaoCD_-6jV?1GHKFVXQv2r%zigY25tdJKX6&WdGx|jzStD{8TMnu|(64t6F8h*KVWcfP7Siz7e_s8-IjY`%T`#$O}91VQ4?!Y%CXU~vRnCso`ITU#arR=;Z@
-k$VLmBq%YEYkb{pUY5b;ctu^tfLoh|*(wY>(}+J@zNS9t@JVNz&eG>qhzh>~AT1Y>(}+J+{aGG}sR>tNs4M&tE;Z$M)DB+hhM-*mDnUc0GUG8PY38?7N;9M)ISt
lfo{#PV6oyPvYOruXWgcu?xi$z1MC>Q!R1)lY;#(EYx}~fOnn?XucGtuXilqd2IEJz++o*%v9H)h)AOq3E`Fn&zQ58nChkpM&!ZZ7`0C5$i1;9vA{`GL5D!16rLJ
wXcHWp&g!dMuJn(i&6n{<zmD&d`lLRoPwJEUq<>}7Q%|Pja;Citx;D<qqdU6FyoBlYnlGk^*j;nBaaA^@+iv-~;5IIAoTb)E5sl(Hg0see2oM71P#w3oPhD{1mJ?
N6UkYW=3zb%C>LF+=I1yliINJ81TeWN?o>P+~)n#1-WMrO5>LXLtp`)Oh8?36IRr9jiztO7kjwUmhKkENy&eJ(kJ-MZ;{Th#RhUZCx#}7Q6Gd^97pKy@nM`N~Ujj
jbca!BS!W3H~x!Sgpi7IIZxj-UOy2IaKdP_AK^r(UXaT~_{ztS_(DgI``ztNT~e>i$P*b-CHp+hTK_<LbXTwfNN
"""


def model():
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    for i, parameter in enumerate(made.parameters()):
        number = torch.arange(parameter.numel()).reshape(parameter.shape)
        parameter.data = ((number * (i + 3)) % 7 - 3).float() / 4
    return made


def golden(text, folder):
    folder.mkdir()
    for name, content in json.loads(zlib.decompress(base64.b85decode(text.replace("\n", "")))).items():
        (folder / name).write_bytes(content.encode("latin-1"))
    return folder


@pytest.mark.parametrize("text", [VERSION_2, VERSION_3], ids=["2", "3"])
def test_a_folder_is_read_as_it_was_meant(tmp_path, text):
    folder, expected = golden(text, tmp_path / "golden"), model().state_dict()
    read_artifact(folder).verify()
    ways = [load(folder), load(folder, packed=True), transformers.AutoModelForCausalLM.from_pretrained(folder)]
    for found in ways:
        state = found.state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[n], expected[n]) for n in state)
        assert not hasattr(found.config, "transformers_weights") and not hasattr(found.config, "quantization_config")


@torch.no_grad()
def written(folder):
    made = model()
    with ArtifactWriter(folder, shard_bytes=1200) as writer:
        scope = find_scope(made).prunables
        matrices = {name: (p, p.matrix(made.get_parameter(name))) for name, p in scope.items()}
        writer.add_model(made, {n: (p, pack(m, m != 0, Unstructured())) for n, (p, m) in matrices.items()})
        return writer.finish(CONFIG)


def test_writing_a_folder_of_version_3_gives_the_same_bytes(tmp_path):
    expected, found = golden(VERSION_3, tmp_path / "golden"), written(tmp_path / "out")
    names = {path.name for path in found.iterdir()} - {".winnow.json"}
    assert names == {path.name for path in expected.iterdir()} and len(names) == 6
    assert all((found / name).read_bytes() == (expected / name).read_bytes() for name in names)
