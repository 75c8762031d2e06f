'''Tabs, semicolons, and as few lines as will do.'''
import ctypes as C,torch as T;from pytest_autokernel.compile import compile_cpp as cc
KERNEL_TYPE='layernorm';L=cc('''#include <cmath>
extern "C" void f(const float*x,const float*w,const float*b,float*y,long m,long n,float e){for(;m--;x+=n,y+=n){float a=0,v=0;for(long i=n;i--;)a+=x[i];a/=n;
for(long i=n;i--;)v+=(x[i]-a)*(x[i]-a);v=1/std::sqrt(v/n+e);for(long i=n;i--;)y[i]=(x[i]-a)*v*w[i]+b[i];}}''')
def kernel_fn(x,weight,bias,eps=1e-5):
	t=[t.float().contiguous() for t in (x,weight,bias)];t+=[T.empty(x.shape)]; \
	L.f(*[C.c_void_p(t.data_ptr()) for t in t],*map(C.c_long,x.shape),C.c_float(eps));return t[3].to(x.dtype)
