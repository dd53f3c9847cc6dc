import sys,time,random; sys.path.insert(0,'/repo')
sys.argv=['churn']+sys.argv[1:]
from tests.vm.loads import churn, actors
from collections import Counter
T=Counter();N=Counter()
orig_enter=actors.Cast.enter; orig_leave=actors.Cast.leave
kinds={}
def enter(self,act,mem):
    t=time.time(); orig_enter(self,act,mem); k=act.__qualname__; kinds[id(self._alive[-1])]=k
    T['enter '+k]+=time.time()-t; N['enter '+k]+=1
def leave(self,i):
    k=kinds[id(self._alive[i])]
    t=time.time(); orig_leave(self,i); T['leave '+k]+=time.time()-t; N['leave '+k]+=1
actors.Cast.enter=enter; actors.Cast.leave=leave
t=time.time()
churn.main()
for k in T: print(f"{k:60} {N[k]:4} {T[k]:7.2f} {T[k]/N[k]*1000:7.1f}ms")
print(time.time()-t)
