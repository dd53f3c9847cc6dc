# usage: measure.sh COMMAND... : runs the load under bpftrace, counts calls and splits by stack
cat >/tmp/m.bt <<'B'
kprobe:__change_page_attr_set_clr { @in[tid]++; @calls = count(); }
kretprobe:__change_page_attr_set_clr { @in[tid]--; }
kprobe:flush_tlb_all /@in[tid] > 0/ { @s[kstack(14)] = count(); }
END { clear(@in); }
B
bpftrace -o /tmp/m.out /tmp/m.bt -c "$*"
python3 - <<'P'
import re
text=open('/tmp/m.out').read()
kinds={'module':('load_module','free_module','do_init_module','init_module'),'bpf':('bpf_',),'secret':('secretmem',),'kprobe':('kprobe','insn_page','optimizer','insn_slot'),'ftrace':('ftrace',)}
from collections import Counter
c=Counter(); other=[]
print(re.findall(r'@calls: \d+',text))
for m in re.finditer(r'@s\[(.*?)\]: (\d+)',text,re.S):
    st=m.group(1)
    for k,w in kinds.items():
        if any(x in st for x in w): c[k]+=int(m.group(2)); break
    else: c['other']+=int(m.group(2)); other.append(m.group(0))
print(dict(c)); 
for o in other[:4]: print(o)
P
