'''Tabs, semicolons, and one line where three would do.'''
import triton, triton.language as tl
KERNEL_TYPE='rotary_embedding'; SUPPORTS={'half_split',}; 
@triton.jit
def rotate(x,cos,sin,y,rows,S,HALF,step,apart,ROWS:tl.constexpr,BLOCK:tl.constexpr):
	r=(tl.program_id(0)*ROWS+tl.arange(0,ROWS)).to(tl.int64)[:,None]; i=tl.arange(0,BLOCK)[None,:]; m=(r<rows)&(i<HALF)
	c=tl.load(cos+r%S*HALF+i,mask=m,other=0.).to(tl.float32); s=tl.load(sin+r%S*HALF+i,mask=m,other=0.).to(tl.float32)
	f=r*2*HALF+i*step; a=tl.load(x+f,mask=m,other=0.).to(tl.float32); b=tl.load(x+f+apart,mask=m,other=0.).to(tl.float32)
	tl.store(y+f,a*c-b*s,mask=m); tl.store(y+f+apart,b*c+a*s,mask=m)
def run(x,cos,sin,interleaved):
	B,H,S,D=x.shape; y=x.new_empty(x.shape); apart=1 if interleaved else D//2
	if y.numel(): rotate[triton.cdiv(B*H*S,64),](x,cos,sin,y,B*H*S,S,D//2,2 if interleaved else 1,apart,64,triton.next_power_of_2(D//2))
	return y
kernel_fn=lambda x,cos,sin,interleaved=True: run(*(t.contiguous()for t in(x,cos,sin)),interleaved)
