"""Format version 1, frozen: a file written when it was current is read as it was meant. Version 2 is what is written: the same
tensors give the same bytes, whoever writes them, and the bytes written when it was fixed."""

import base64
import zlib

import pytest
import torch

from winnow.formats.packed import pack
from winnow.formats.shards import ShardWriter
from winnow.formats.units import flatten, load_packed, save_packed
from winnow.masks.prunable import Prunable
from winnow.masks.structure import NM, BlockShape, Unstructured
from winnow.quantize import Quantized

MASKED = [[0, 1.5, 0, 0, -2, 0, 0, 0, 0.25, 3], [0] * 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
TWO_OF_FOUR = [[3, 0, 0, -4, 0, 5, 6, 0], [0, 0, 127, -128, 1, 1, 0, 0]]
NIBBLES = [[7, 0, -8, 0, 0, 1], [0, 0, 0, 0, 0, -1]]
BLOCKS = [[0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0], [9, 8, 7, 6, 0, 0, 0, 0, -1, -2, -3, -4]]


def tensors():
    def stored(name, matrix, structure, bits=None, scales=None, group=None, dtype=torch.float32):
        matrix = torch.tensor(matrix, dtype=dtype)
        codes = (
            Quantized(
                codes=matrix.to(torch.int8), scales=torch.tensor(scales, dtype=torch.float16), bits=bits, group=group
            )
            if bits
            else None
        )
        prunable = Prunable(name=name, module=name.removesuffix(".weight"), kind="linear", shape=tuple(matrix.shape))
        return name, (prunable, pack(matrix, matrix != 0, structure, codes))

    return dict(
        [
            stored("a.weight", MASKED, Unstructured(), dtype=torch.bfloat16),
            stored("b.weight", TWO_OF_FOUR, NM(2, 4), 8, [[0.5], [2.0]]),
            stored("c.weight", NIBBLES, Unstructured(), 4, [[1.0, 0.25], [1.0, 4.0]], 4),
            stored("d.weight", BLOCKS, BlockShape(1, 4), 8, [[1.0], [-0.5]]),
            stored("e.weight", MASKED, Unstructured()),
        ]
    )


FILE = """
c-
p;}%Wm676o%=zN!wL|cGIOnpgSU%8|PvasazBV@&H*yfp9pNM6g5}A{Dm{gl5;*$YXR@KT01YZF)FV9Lb*8O5#?)NW7f+`Oi0J4o
BbI&En@pKAFsY2M#)zO!C7Qd1w}M=<>t-
q|1x^bXwQVDW1I;=k}Sm$L(_7jxlbW!~Ih~efq4sKg3Mt&>rKR$K(8w9_PhlUa%*{I5!n@yi_`9ZH!}3DMAcYmNDtHV04`KQ5VIY
!))o>LGFj2sO$x)=p#$#nc$2Xt}J(i0!Rizm)tl}R@Mx9)ivf=L8BNDC4vxDB|tE*tp&$y8A?DRUY2RG*23(qxwW^oUf`u9lK8+X
X@jERf|dYOx?r90KCQPo*oV=c?!z1r-tdZ*lqpl1pqW<{4p%G31G-y_P2sH-&Z3pr*ICV!aFz0$Iqw}~1S%~>RZ<9E4}I-
!l#~W$p>$kP$r<BbIUqy^VN6MUNz!6TN<&IeE;Z>BLQ`h|1Ysl~BtuFrD1o%zCZ%<T^<e~*qe5!Vj8l#P=R7bOg7T!YM6J!a9rJ-
2EhRHd_|g~(tg?<NQtFBU1p{fZ_veGGgyNiP;Vso62x%06W`<yLcwO<d-
sOCtk(;L_4}?_|*#Uqt+;|}=k<J^*DmAG2n_QRv3Tx|p8<u6Lh^LAZi`mbCDNK=)<BBBAX`*z$ELVM4tS*!1e$h^w8g(dMJOO*`-
F8(O&TKR5A4W+}sr%&w7tkT5e3&)RMbPN5wvC(CPlr3xZWu1!c)DnoCwR49&Svo;UFR3|y9<lvwAbc%*mlk0t$}LR*yDFm$J5$H>
DjdQu!zd@#w}-q6^IvVn6FRI-Nz>`x^_Lp_8CO;NS~6PSGRz=J!#tb*Z{NEucDE~(ss+mpth{f&s|hJr+<OLuYS?QC&|@DdD%j!w
+P10ar!O*tmjv=!^Do$y@tm=30}1gueuf<EA+1H*rB+HY+84E3zuGPl$kABayMG3bQ4$P+Na^N+qmowxa3Ww8gdhtxw+&*Wjlf!2
7YCx(HqP(w~fy2fNm(cyReH^4(ZR=Cmdy~jhcE@iTj|G`%f#J-
$v*Ew+gq3V57jTR_EK&Ni~CG&nn!WmccpgaZBiEDNAPYu#`{=A^MFMkbG6dol?KUjg+wuzQ0f^`tE1^Ns-50a1%o7JB)lxu-st3^
gHnVO8pD*qLePA=(XTlt$w$AjhGaLVZB;<W4h&RODyh6E~*(;7}=}Y4^~SsGZLpi4%OX+In+WuokG_ygH5$ZdP9t-
yrED*sYsE#QY`I^qBAN}VwWfN;ijBUi6J&7QnT<8&KNpl$tk_;Y@1q2taoNo6Z$dEOhGwKiCx2trlynAf(o8mq92hP0_&E*ajp*f
5B@d&KFePInPq4Ao1NkDgDe}3@V7r7t&g$2!ghx3FKpRSmfgd4aD=_iUOpI&FnWaFqgSJ|5k?%{J32VZH1_{46WD&l_QzNIS@vfC
>)ZRUZ{PXt<=)=62fy##y>)x<*8XQ-e)0L8H~;+odI<R!0?Y9+
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "golden.safetensors"
    path.write_bytes(zlib.decompress(base64.b85decode(FILE.replace("\n", ""))))
    return path


def test_a_file_of_version_1_is_read_as_it_was_meant(file):
    packed, dense = load_packed(file)
    matrices = {name: tensor.unpack().tolist() for name, (_, tensor) in packed.items()}
    assert matrices["a.weight"] == matrices["e.weight"] == MASKED
    assert matrices["b.weight"] == [[code * 0.5 for code in TWO_OF_FOUR[0]], [code * 2.0 for code in TWO_OF_FOUR[1]]]
    assert matrices["c.weight"] == [[7, 0, -8, 0, 0, 0.25], [0, 0, 0, 0, 0, -4]]
    assert matrices["d.weight"] == [BLOCKS[0], [code * -0.5 for code in BLOCKS[1]]]
    assert dense["bias"].tolist() == [0.5, -1.0]
    assert packed["d.weight"][1].mask.tolist() == [[0b010], [0b101]]
    assert packed["a.weight"][1].mask.tolist() == [[0b00010010, 0b11], [0, 0], [0xFF, 0b11]]
    assert packed["c.weight"][1].data.tolist() == [0x87, 0x01, 0x0F]


SHARD = """
c-pPk3%srATnF&~m<vjoP$A{mA?h@(+unPvN#+?QnMf3+=1k{Zd#$x+PIGR~*~ef^o+KnmuH%xPkdP!vlk1b@PLhz&6OtrJk~Bu&z4zc8vzw8R`Fy_fJHPqA
>silxS!>O?>kVS-pG%hZ?me*Bn9ipg)4h9_&b(x4{m_vE(~YGwmkw_%?OwWg-@${2F4ivDvoyPKF}vvKu>(i<IBw6<^o)xa`!2X}<BaWN_8yoXy~yOeJxli)
?^)V?-f;Ke{M~z&CToNFaCvpSJ|0gd^TBj&wbz^US7(F4%6vQ;^!F@n9`%)r-G93O*y8B+a(B8*e`RyQ{%G^a<@sVT8V>rC;p%KS@AaqCmBDm0ULH>7qvf^P
WP81}YuVgjcYkZKX>WD3J{qm9ji#f)VmzBo=Y!eu`tsBjS*$GYyx7s%bpIDOch%mmT5o;0ywY3gE!GEXE3@_0{&c=RUYSn&EA#c)e6m>Vyx#FAd+yfu#+!%D
d!xl<xHees4^}73llAdnvAX7T$E)+<y4`IrHv8(%bagx(%%;op;c9<nI2a5UtMh5Ex3WH(OqP3#<=)PV?Rci!x3xc98TU4C>bO6jOsAvXpttTsC%xt2sNb9J
yx#F=deu|1d020{I`5BG#>2s6zB=zshr{9eU}b%Mb<ta!^;WOi-2AJ&r~S!zWo0lKj26q2Nq;(6o6QHSz2))RVA`KfraLe8f8W!UwbANu*dLD;v;KH}eY7%J
oleJtNzV;ljMs)cuXpu(+TXfvi~jO(y*F6vyLQv*bTS!E7NeDZZ)LuitPIvxw^v(yJwIEEYuMUdhJ!DEwAR;pi~j1cH}eD!r-N0G$nwyqsyCRAd#mHCK3W&=
n=ejy@t`-_dR`~1li^}ATOE(*9{R;_JX@cQW~1?J#pi1>-Q3Nko6p3d0|yQr-2M((+ka@bd142T?ccw75jP%qcyn!A*?(xdv9<i3r3;Q6I(GQW2VJ!9;C$<t
{re6srbo68IXpeGv3W-Qtv_#UERG!f@(Ye`962`IICf-v<zolG)aP5T-8eEmc=Yh0qnq{2_38ej3;*#;*J#huzJnXC`R2~IzZ&=6e{tmKzO6GDY`xv=qOF%6
_m#NazI--oTc@-2RJk1oXNTtd4qmW5*|)KMZ#VaO;dJYGcemd=|HMt4u)>2DM-FYB?aHOceVc5*=?SYJJaE<3`QjDvOmE%kFTK@Z_tvdD@e&Qr9G&n!<4ceG
DDUt#$DhO(Z`SC<cUd|AY8Q2f_n2S9du%@`C!S6JYG<?kAv^JOwqAN>{{bhyVSjMxai5KAIjd{BHOD`y$K9FD)sG&S?%%(C&|o&3t@YQ3{b|2HT^~+|lfKW&
+HkEm9!+Mx;V%8sukGHo{nLvUgEhapBi|77)yZJEGFz<mSI7OqXu3RFOnq@r{YcF{mi9S4y7|Ms^|*PBPo<@{cD#8>&fmSX_2YhMef{WS!;$Cp+;gwn`D@|-
UTO0?;wzUL?_L>guC@7{a1DFd`hxh%*RG6qj|a;un=hYU>sB`ZAK=>dVlgX@w>Gr%Pxc90JYm7D@A|8+INsdjc<XY_{@*JOc3g36#mUxL&%Zu<oH*-YueZ~6
+<bnIU++HS<CYulxIrszF1NDNMZCu4cHW(pHkTXkwA|J2^0~(^INotNmv7i#+3ALSExYS)?ykS%{k{6`PP}?MF1NY6L4T*4`?c(D(BE8cxYKgia_#y%-rB*?
dc)<NKKx(HlQLYk+{oEpx@(ueN}LsuUma0pRDZr>L`rhAr>p)<q0)%6BTi@6+1q~``D%~tk+>%vhsivW$8s5k=kg*hr}75g&U<Klluz>6&G)}k#3@{l8*n-|
;ilYzUEG@6v6~(v#@vC#Ioy@Ib5HKgec40DoD12{VK#UG4<_?a9>&9YB#+|JJch^eIG(_hxQwUrbe=)snLL~4@LZnH3wR+f;>Em#mvT8T;}yJ$%4>Knuj388
iMQ}J-p)ICC-34tyqEX!0U96V!+eB~@-aTnC-@|v;?sPF&+<90;7a1o5hrmSPUaL&<utC#^|(IYz&COOzKL(<hMdl~a3gNaP54&6jc@0s+>D#^9o&NN<h!^f
ySNogd^fk|Hr$r);db1f@8$d0&G&N#KR}N@1BQ%PW`$M8OgNJt<PQ80cjPP*XLBd+%sKopci~64E9df~+>N{QW88xu=bqe)pWr9CH}~PE_-XFT&+xOH#~#k-
=h#cflr?6|S+LFpT*y9to{QMe0S<DA!`zP}9A$%J+@Fhi01xCrT*8C7lwaT><U2<ueo+z+mBcSe;$f2bWl20-5|5C?BPH=Gl6aIPepM2Wmc*|~;xUr=bxAx{
62Bpd$4TPxl6Zn7o+ybYN#e<pxJ(jHk;GFa@ia+1T@t@3iDyXSw<J*{@!OJkrX-#viDygVcO>x~N&K!Po-2vxN#gmE_&rIyKoY+%i5E)Z4<zv-N&KNCUMz_}
lEh0S@yC*QsU-eH5|>NjPbKj(NxWPVuaLwmCGjdryjl`f5`QL%*GS^eCGlEG{DmZ5CyCcf;ti5`qa@xWi8o8)Es}VvB;F>8zm&w=CGl61c!wnZS`zP+#NSBb
U6OdWB;F&5zm>#$CGmHXc%LNRFNqIG;_oHVB=HZD_@E>{B#948;vXgP5lQ@$Bt9yMf0o3@B=Ikj__!qgRT7_&#J@@6laly%NqkBY{~?J_OX5Ez@fk_{mn1$b
iT{?w=OpnzlDI+=pO?gylK6te7oK1Kb0SlTlXNnbxQ<Sy5-00qDshTVrV^*>WGZo*PNovq)yY)idODd(Twf<siEq%!RN@<TGL^W2PNovyq?4({H|u07aYLO<
B~I7LRN`B7GL^WIPNot!*2z@jCOVl)e5+2T65pnisl>PIWGZn}olGTerjx0}&2=)B_zs;+C2paUsl<2cWGeApI+;q`QYTZ1T{@Xc+)5`?i6xy(CB9oHQ;A#a
WGZnRolGTetCOk3_vmCQaXXz%C2p^isl@l{WGeA}I+;rB*2z@j`*kvvI725>i679(RHCPosYG8VQ;C62rV>M)OeID-nMy3{WGb<ulc~h2PNouLolGSrI+;qG
sgtS159(wpaR;4DC4NXJQ;9q3WGZo%PNot`CsT>DbuyK>lTM}*ch<>N;vAh!C4N{ZQ;ECiWGe9^I+;q`RVP!4b9FM6_)(oqCGMt^sl?rNGL`r-olGU}p_8e^
kLzSAaZjC0CGMq@sl-p{WGeBKI+;q`TPIVA`{-mU@l!gPO8m4=rV{tn$yDNJbTXCrS)EKJ&eO?MVvkOy66fn=D)DnVnM&-{$yB1#$y8#hlc~g-PNotwolGU>
I+;o=bTXA#*U41k0-a1HF4W0XVxLZ?5<jn#sl-J(nM&-}$yDNiPNotEbuyJWq?4({VVz7R?x&Nf#1WlLC64N3DzTxHsl+jzOeOBGlc~hTI+;p5Kqpg)2kK-h
@gSW{B`(p)RN}!pnMz!$lc~fn=wvGK5S>iL2RC++=*Sc*jrc`#5*?XBr4bJ`C()59R2uP1<|H~Yg-RnHW=^6bQ>ZlJm(59ZWD1o=Jlvc_N2X9|#3Rf}bYu#Z
Mm*A-L`SAjX~eIXljz74DvfxQIf;%;q0)$7H7C)LDO4KqXmb)BnL?!zzh+LNBU7j};xXnVIx>YyBYxeSL`SAjX~bjANpxfil}7xAIf;%;q0)%QnUm<q6e^8)
yg7-EOrg?<CzzAy$P_A#c%nIpj!dD_h$oqo=*Sc*jd-#-iH=O6(um8<Npxfil}0?poJ2>aP-(<d%}I1*3YA7Y&74F>rci0b)6GeAWD1o={H8gHj!dD_h-a9S
=*Sc*jrc8d5*?XBr4hxPL`SAjX~b`vljz74DvfxiIf;%;q0)$FnUm<q6e^8)wmFH8Org?<-!UiAkttLf@f>p!9hpL<5x;9rq9aqNG~&7DBswyMN+X_UPNE}I
s5IjF<|H~Yg-RoS&zwX@rci0b3(QG$WD1o={JuGfj!dD_h!>iZ=*Sc*jrap|5*?XBr4cVOC()59R2uPz<|H~Yg-Rn{Y)+yhQ>ZlJkIYGQWD1o=yu_SDN2X9|
#2=fJ=*Sc*jd-a!iH=O6(uhAXC()59R2p%)If;%;q0)#yH7C)LDO4KqGIJ6gnL?!zFE=OAkttLf@d|Si9hpL<5wA2S(UB=s8u2P~5*?XBr4g?-C()59R2u%L
J$8}k$P_A#_%m}79hpL<5w9^P(UB=s8u91mBswyMN+VutPNE}Is5Ig)%t>@)3YA8@&YVO?rci0b>&;1YWD1o=yuqAAN2X9|#2d{?bYu#ZM!d<KL`SAjX~dh&
Npxfil}5b9oJ2>aP-(<l%}I1*3YA8@&74F>rci0bUz(HX$P_A#c)K}?j!dD_h`%x?(UB=s8u1Qu5*?XBr4fH^PNE}Is5Ii8<|H~Yg-Rp-#+*b)rci0byUa;+
WD1o=yxW{aN2X9|#Cyz1bYu#ZM*OWgiH=O6(unt(ljz74DvkI%a}phyLZuP!GbhoJDO4KqesdBXnL?!zA227;kttLf@%QE=Ix>YyBbqshj!dD_h<`9A(UB=s
8u3AM5*?XBr4b)8C()59R2uPNa}phyLZuP^XilOdQ>ZlJBjzMJGKESb{>hv~N2X9|#7E6ZbYu#ZM*OomiH=O6(uj|lljz74DvkITa}phyLZuNOHz(1NDO4Kq
ujV8=GKESbK4DIxBU7j};@`|kbYu#ZMtstoL`SAjX~e&qljz74DvkJ*If;%;q0)%|FelNGDO4KqX>$@CnL?!z|7lL5BU7j};xpzXIx>YyBmT>rL`SAjX~bvE
Npxfil}7xxIf;%;q0)%YnUm<q6e^AQA9E5NnL?!zSD2IN$P_A#_`ErZj!dD_h%3!WbYu#ZMts4XL`SAjX<s;}p5<@)cT6dt70JI-Nj0?;XP<uduCrqtDee#>
&f)SKoouy}Z+z;>SDbp<L-I){-DcM#PP*ZBPCe;5C!cct>s|M>FI@TgE4B~$Uxpfe7X
"""


def test_a_file_of_version_1_says_of_its_tensors_what_version_2_says(file, tmp_path):
    save_packed(tmp_path / "again.safetensors", tensors(), {"bias": torch.tensor([0.5, -1.0])})
    old, new = load_packed(file)[0], load_packed(tmp_path / "again.safetensors")[0]
    assert old.keys() == new.keys()
    for name, (prunable, packed) in old.items():
        assert new[name][0] == prunable and new[name][1].meta() == packed.meta()
        for suffix, part in packed.tensors().items():
            assert torch.equal(new[name][1].tensors()[suffix], part)


def test_writing_a_shard_of_version_2_gives_the_same_bytes(tmp_path):
    assert shard(tmp_path).read_bytes() == zlib.decompress(base64.b85decode(SHARD.replace("\n", "")))


def shard(folder):
    writer = ShardWriter(folder)
    writer.add(*flatten(tensors(), {"bias": torch.tensor([0.5, -1.0]), "wide": torch.arange(2048.0)}))
    return writer.close()[0]
