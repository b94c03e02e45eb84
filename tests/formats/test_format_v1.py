"""Files of format versions 1 and 2, frozen: written when these were current, they are read as they were meant. The folders around
them, and the bytes of version 3, which is what is written, are in test_format_folders.py."""

import base64
import zlib

import pytest
import torch

from winnow.formats.packed import pack
from winnow.formats.packed_file import load_packed, save_packed
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
c-rlk-EI>{6vsED&{nEc)V@HpQtvD@UpqS!A#kb+l?UJoN7k7yuwt(x@0zqlQFGVV;4ymFJPHp&OV7-jWKEWYQZ6^rKla9Fe)B))%!l*yH(C05nNOz+-++S#
rqg`?WgeER1vL47e%$1v{A5;D%M*NhImzvFZ;$HrqMl&fB!_z^e)jBnbFYn=E}%ZbPo7TlCu)+9p7Iep98Gd<nBzsMf>K&L2BsuL)6y~~of3>r@)-3#>;=r%
zHV_pKB6)Lsfdw<^Gt9?H7_l9gaSwgLKR#)Q5dURp1Hvs8_@&<Qi>piF#-hh%35&D7NG#Fh?hk_thO+JXKv$d!wbBSL=qpEkv5bRTu>5#N*Aot-uLsm$v#f@
R19-Oc+CwfC@XcLgJQlkn64@v59qFi*^kS#RKP40j+az&#<(vX5F&%nx*)zF{jlCl+qP0J6^Tt%)M)@g7zvoDCIuIiKtHdW>1LJ0Fao8cLMqO*D;)vOd0;Yx
(i3AzxiRNHvZqulDVb)%7g|$b#yVD#LKy}WH1xwh+*4^p$vIWRTdG13QkMXVX@U**%J6>P)t=H+H%|*52s0FG2LM`g?S-U7I<F-&WlQs)b8q=;tUcoFa%%-c
JS{n~xPm#b5|>E9aaR%M6e-naYn{xT-yU2LlICHqupq7V=&6*35k<YX+_S*AEiv}+G_Hx|VzI2+GsMi7HYQfB=kr*^=GWuMMl16rGzmY+pRJbb<IA9<S>;m9
d{%i_rI2G-H8CTa-Zzb3RhI+mX0^7>dexHG)y1<*W1AIJ_3^TfkNW}UwZ}hR)M%2=ss?KwowrBh^o3v5vy=f#)7hgmv~wi3PnX%4lulYzSf<J@-K=`nelly?
-bSC#A;n{NX)0*P#1`Q<zgnhj<!R?MX(!#HSBp(`-c<zGbn5iQRBV)vn(Y#?eX%u<I_+%bo@u&Cyla-&o<$yBDQeFg?wUE;m9m`;y^>A4$+pu;L-*+~+Y?fD
+Swa7WOZF@x=XdwnMkh}FrT+U%vx(`;1no@z=3P(wKd!jCA7s8?)2ieotilud1mm|1!sw~R&WiB7=wGUC^+}pIPHil11?MS33a@<({jTxxGNEr9LJIzj`DQ5
FGHw(gON`O_8iCc9}6EQ#WUi4lp0A9S@BG`W@I`b-XAN)2=B@?9B#A{zXROhCBl%XStRyf*;^L3fa$EiO4KY8WhC1FOk}-8Il|LEW$iwTM}$S9>Z@a1zg^xF
)xq&zgGfRg6@5j#7WV;nG`gd*4|lc8kGnwCi;LxBqOT#J;*Ldkthc{c-ECK|7nj`WzUF?CJB>I_`*1hZj`p^eQ{)NWxA{M1r3fBznC<D_9{wxwFw4&V%Cd8O
&Cc=tgDe}5@ijh=H}6reQ0J)EsO%ui?xOY%+VO)14H`6P(4aws1`QfCXwaZRg9Z&6G-%ME|D*GV+4<Rn@%ZdvHpbuMSL5^X>v48)_h9cJQ`tDXp9$1Ys6W5k
&9b+<-{0PSbNkNkXFEGT?ESIx?XBB8w|2ky`l~PRy#43zH*LtjYg}vK
"""


def test_files_of_earlier_versions_say_of_their_tensors_what_version_3_says(file, tmp_path):
    (tmp_path / "second.safetensors").write_bytes(zlib.decompress(base64.b85decode(SHARD.replace("\n", ""))))
    save_packed(tmp_path / "again.safetensors", tensors(), {"bias": torch.tensor([0.5, -1.0])})
    new = load_packed(tmp_path / "again.safetensors")[0]
    second, dense = load_packed(tmp_path / "second.safetensors")
    assert dense["bias"].tolist() == [0.5, -1.0] and dense["wide"].tolist() == [0.5] * 1500
    for old in (load_packed(file)[0], second):
        assert old.keys() == new.keys()
        for name, (prunable, packed) in old.items():
            assert new[name][0] == prunable and new[name][1].meta() == packed.meta()
            for suffix, part in packed.tensors().items():
                assert torch.equal(new[name][1].tensors()[suffix], part)
